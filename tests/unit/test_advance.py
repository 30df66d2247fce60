"""Every backend that runs here against the reference, to the bit, over everything ``advance`` may be handed."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import reference
from engine.backends import BACKENDS, TRITON
from engine.plan import COLUMNS, KEEP_FROM, STORE_FROM, X_FROM, Op, Row
from engine.state import Noise
from engine.verify.cases import Case
from tests.cases import assert_same_bits, check

CPU = torch.device("cpu")
HERE = [b for b in BACKENDS if not b.not_supported_reasons(CPU, torch.float64)]
FAST = [b for b in HERE if b.name != "reference"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STATES = (torch.float64, torch.float32)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

# TRITON gets fewer samples of a case: its interpreter takes seconds for thousands of elements.
backends = pytest.mark.parametrize("backend", FAST, ids=lambda b: b.name)


@backends
@pytest.mark.parametrize("state_dtype", STATES, ids=str)
@pytest.mark.parametrize("net_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("noise", ["philox", "float32", "float64"])
def test_all_ops_in_one_batch(backend, state_dtype, net_dtype, layout, noise):
    for seed, churn in itertools.product(range(2), [True, False]):
        ops = tuple(Op) * (1 if backend is TRITON else 2)
        check(backend, Case(ops, (3, 6, 6), state_dtype, net_dtype, layout, churn, noise, seed=seed))


@backends
@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (5, 9), (1, 1, 1), (3, 32, 32), (3, 5, 7), (1, 28, 28), (4, 16, 8), (13, 3, 3), (2, 3, 4, 5)],
    ids=str,
)
def test_each_op_on_ragged_shapes(backend, op, shape):
    samples = 1 if backend is TRITON and math.prod(shape) > 500 else 3
    for layout, dtype in itertools.product(LAYOUTS, DTYPES):
        check(backend, Case((op,) * samples, shape, net_dtype=dtype, layout=layout, seed=1))


@backends
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("extra", "padded"), [(3, 0), (0, 1), (1, 5)])
def test_more_channels_than_the_image(backend, layout, extra, padded):
    for shape in [(3, 8, 8), (3, 5, 7)]:
        check(backend, Case(tuple(Op), shape, layout=layout, extra_channels=extra, padded_channels=padded))


@backends
@pytest.mark.parametrize("net_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 15, 13), (7,)], ids=str)
def test_guidance_and_known_pixels(backend, net_dtype, layout, shape):
    for seed, (guided, known, state_dtype) in enumerate(zip((1, 0, 1), (0, 1, 1), (*STATES, STATES[0]), strict=True)):
        case = Case(tuple(Op), shape, state_dtype, net_dtype, layout, guided=guided, known=known, seed=seed)
        check(backend, replace(case, copies=1 + seed % 2))


@backends
def test_one_sample_alone_has_its_copies(backend):
    check(backend, Case((Op.EULER,), (3, 4, 4), guided=True, copies=2))


@pytest.mark.parametrize("backend", HERE, ids=lambda b: b.name)
def test_rescaling_a_constant_changes_nothing(backend):
    """There is no spread to restore: the factor is 1, not a division by zero."""
    F, state = Case((Op.EULER,), (3, 8, 8), guided=True, churn=False).build()
    state.table[:, COLUMNS.index("guide_F")] = state.table[:, COLUMNS.index("rescale")] = 1.0
    state.table[:, COLUMNS.index("guide_G")] = -1.0
    backend.advance(F, state, 2, F.clone())
    assert state.guide_scale.tolist() == [1.0]
    assert state.bad_row.tolist() == [-1]


# Every number a plan may hold: both signs, denormals, and far beyond sigma's 1e-5 to 1e5.
numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, 2.2e-308, 1e-45, 1.1e-38]),
    st.floats(1e-5, 1e5),
    st.floats(-1e30, 1e30),
)
divisors = numbers.filter(lambda value: value != 0)
singles = st.floats(-(2.0**100), 2.0**100, width=32)  # the columns that are float32 by contract


@st.composite
def rows(draw, slots, guided):
    """One legal row. Infinite is only sigma, of BEGIN and of LINEAR rows: at zero SNR there is no other form of it."""
    op = draw(st.sampled_from(list(Op)))
    row = Row(
        op,
        sigma=draw(st.sampled_from([math.inf, 80.0]) if op in (Op.BEGIN, Op.LINEAR) else st.floats(1e-5, 1e5)),
        **{name: draw(singles) for name in ("c_skip", "c_out", "c_in", "c_noise")},
        **{name: draw(numbers) for name in ("begin_scale", "slope_x", "slope_D", "h", "h_predict", "w_0", "w_1")},
        **{name: draw(divisors) for name in ("s", "slope_t", "s_next")},
        draw=draw(st.integers(0, 2)),
        evaluate=draw(st.sampled_from([0.0, 1.0])),
    )
    if op is Op.LINEAR:
        slot = st.integers(-1, slots - 1)
        keep, store = draw(slot), draw(slot)
        sums = {name: draw(numbers) for names in (X_FROM, KEEP_FROM) for name in names[: 2 + slots]}
        sums |= {name: draw(numbers) for name in STORE_FROM}
        row = row.then(**sums, keep_slot=keep, store_slot=store if store != keep else -1)
    if op is not Op.PREDICT:
        row = row.then(ratio=draw(numbers), std=abs(draw(numbers)))
    if guided:
        row = row.then(guide_F=draw(numbers), guide_G=draw(numbers), rescale=draw(st.floats(0, 1)))
    return row


cases = st.tuples(st.integers(1, 4), st.booleans()).flatmap(
    lambda drawn: st.builds(
        Case,
        guided=st.just(drawn[1]),
        known=st.booleans(),
        copies=st.integers(1, 2),
        rows=st.lists(rows(*drawn), min_size=1, max_size=6).map(tuple),
        shape=st.one_of(
            st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12)),
            st.tuples(st.integers(1, 40)),
        ),
        state_dtype=st.sampled_from(STATES),
        net_dtype=st.sampled_from(DTYPES),
        layout=st.sampled_from(LAYOUTS),
        noise=st.sampled_from(["philox", "float32", "float64"]),
        extra_channels=st.integers(0, 1),
        padded_channels=st.integers(0, 1),
        slots=st.just(drawn[0]),
        seed=st.integers(0, 2**31),
    )
)


@backends
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(case=cases)
def test_hypothesis(backend, case):
    check(backend, case)


@pytest.mark.parametrize("backend", HERE, ids=lambda b: b.name)
def test_the_first_non_finite_row_is_kept(backend):
    F, state = Case((Op.EULER, Op.PREDICT, Op.CORRECT, Op.LINEAR), (3, 9, 9), churn=False).build()
    F[1, 2, 8, 8] = torch.nan
    F[3, 0, 0, 0] = torch.inf
    backend.advance(F, state, 2)
    first = state.bad_row.clone()
    assert (first >= 0).tolist() == [False, True, False, True]
    assert first[1] == state.base_row[1] + 2
    F.fill_(torch.nan)
    backend.advance(F, state, 1)
    assert (state.bad_row >= 0).all()
    assert torch.equal(state.bad_row[[1, 3]], first[[1, 3]])


@pytest.mark.parametrize("backend", HERE, ids=lambda b: b.name)
def test_a_sample_does_not_depend_on_the_others(backend):
    """Each sample at its own row gives the bits it gives alone."""
    F, state = Case(tuple(Op) * 2, (3, 8, 6)).build()
    alone = []
    for b in range(len(F)):
        F_b, state_b = Case(tuple(Op) * 2, (3, 8, 6)).build()
        state_b.x, state_b.slots = state_b.x[b : b + 1].clone(), state_b.slots[:, b : b + 1].clone()
        state_b.net_in, state_b.c_noise = state_b.net_in[b : b + 1].clone(), state_b.c_noise[b : b + 1].clone()
        state_b.base_row, state_b.bad_row = state_b.base_row[b : b + 1], state_b.bad_row[b : b + 1].clone()
        object.__setattr__(state_b.noise, "seeds", state_b.noise.seeds[b : b + 1])
        backend.advance(F_b[b : b + 1], state_b, 2)
        alone.append(state_b)
    backend.advance(F, state, 2)
    for b, one in enumerate(alone):
        assert_same_bits(state.x[b], one.x[0], "x")
        assert_same_bits(state.slots[:, b], one.slots[:, 0], "slots")
        assert_same_bits(state.net_in[b], one.net_in[0], "net_in")


def reads_slot_3(state):
    state.slots = state.slots[:3]
    state.table[:, COLUMNS.index("x_from_3")] = 1.0


@pytest.mark.parametrize("backend", [b for b in HERE if b.name != "triton"], ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("op", "change", "error", "message"),
    [
        (Op.EULER, lambda s: s.base_row.fill_(9), IndexError, "sample 0 is at row 11; the table has 4 rows"),
        (Op.EULER, lambda s: s.base_row.fill_(-3), IndexError, "sample 0 is at row -1; the table has 4 rows"),
        (Op.EULER, lambda s: s.table[:, COLUMNS.index("op")].fill_(7), ValueError, "its op is unknown"),
        (Op.BEGIN, lambda s: setattr(s, "noise", Noise(s.noise.shape)), ValueError, "neither seeds nor a buffer"),
        (Op.PREDICT, lambda s: setattr(s, "slots", s.slots[:0]), ValueError, "a slot that is not allocated"),
        (Op.LINEAR, lambda s: reads_slot_3(s), ValueError, "a slot that is not allocated"),
        (Op.EULER, lambda s: s.table[:, COLUMNS.index("guide_G")].fill_(2), ValueError, "guided.*G.* None"),
        (Op.EULER, lambda s: s.table[:, COLUMNS.index("rescale")].fill_(1), ValueError, "guide_scale is not allocated"),
    ],
)
def test_a_row_that_cannot_be_carried_out_is_refused(backend, op, change, error, message):
    F, state = Case((op,) * 2, (3, 4, 4)).build()
    change(state)
    before = state.x.clone()
    with pytest.raises(error, match=message):
        backend.advance(F, state, 2)
    assert torch.equal(state.x, before)


def test_reference_begins_without_a_network_output():
    _, state = Case((Op.BEGIN,) * 2).build()
    reference.advance(None, state, 2)
    assert torch.isfinite(state.x).all()
