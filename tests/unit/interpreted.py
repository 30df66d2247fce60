"""What test_triton_interpreter.py runs in a process of its own, where Triton's interpreter is on: the kernels on CPU
tensors, for what tests/unit/test_advance.py does not ask of every backend.
"""

import copy

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from engine.kernels import advance, philox

from engine import reference
from engine.backends import TRITON
from engine.noise import box_muller_ref, normal_ref
from engine.plan import COLUMNS, Op
from engine.state import Noise
from engine.verify.cases import Case
from engine.verify.normals import DRAWS, PHILOX_KNOWN, SEEDS
from tests.cases import assert_same_bits, check

BUFFERS = ("x", "slots", "net_in", "c_noise", "bad_row")


# Where a root, a sine or a cosine is exactly zero, where quadrants meet, and where the conversions round.
EDGES = [n % 2**32 for k in (0, 24, 25, 29, 30, 31) for n in (2**k - 1, 2**k, 2**k + 1, 3 * 2**k, -(2**k) - 1, -(2**k))]


@triton.jit
def _pairs_kernel(out_ptr, a_ptr, b_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b = tl.load(a_ptr + at).to(tl.uint32), tl.load(b_ptr + at).to(tl.uint32)
    first, second = philox.box_muller(a, b)
    tl.store(out_ptr + at * 2, first)
    tl.store(out_ptr + at * 2 + 1, second)


@triton.jit
def _philox_kernel(out_ptr, words_ptr):
    k0, k1 = tl.load(words_ptr).to(tl.uint32), tl.load(words_ptr + 1).to(tl.uint32)
    c0, c1 = tl.load(words_ptr + 2).to(tl.uint32), tl.load(words_ptr + 3).to(tl.uint32)
    c2, c3 = tl.load(words_ptr + 4).to(tl.uint32), tl.load(words_ptr + 5).to(tl.uint32)
    r0, r1, r2, r3 = philox.philox4x32(k0, k1, c0, c1, c2, c3)
    tl.store(out_ptr, r0.to(tl.int64))
    tl.store(out_ptr + 1, r1.to(tl.int64))
    tl.store(out_ptr + 2, r2.to(tl.int64))
    tl.store(out_ptr + 3, r3.to(tl.int64))


def pairs(a, b):
    """box_muller of int64 words [n], n a multiple of 256: float32 [n, 2]."""
    out = torch.empty(len(a), 2, device=a.device)
    _pairs_kernel[(len(a) // 256,)](out, a, b, BLOCK=256, enable_fp_fusion=False)
    return out


def philox_words(words):
    """philox4x32 of key and counter, int64 [6]: int64 [4]."""
    out = torch.empty(4, dtype=torch.int64, device=words.device)
    _philox_kernel[(1,)](out, words)
    return out


def edge_words(device):
    """Every edge with every edge, as two lists of words, filled up to a multiple of 256."""
    grid = torch.cartesian_prod(torch.tensor(EDGES), torch.tensor(EDGES))
    return torch.cat([grid, grid[: -len(grid) % 256]]).to(device).unbind(1)


@pytest.mark.parametrize(("words", "result"), PHILOX_KNOWN)
def test_philox_known_answers(words, result):
    assert philox_words(torch.tensor(words)).tolist() == list(result)


def test_box_muller_at_the_edges():
    a, b = (words.contiguous() for words in edge_words("cpu"))
    expected = torch.stack(box_muller_ref(a, b), -1)
    assert (expected == 0).any()
    assert_same_bits(pairs(a, b), expected, "pairs")


def words(values):
    return torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64))


def compare(F, state, k=2):
    """The kernel and the reference from the same start; the kernel's state."""
    expected = copy.deepcopy(state)
    reference.advance(F, expected, k)
    TRITON.advance(F, state, k)
    for name in BUFFERS:
        assert_same_bits(getattr(state, name), getattr(expected, name), name)
    return state


@pytest.mark.parametrize("shape", [(3,), (3, 7, 5), (513,)], ids=str)
@pytest.mark.parametrize("draw", DRAWS)
def test_normal(shape, draw):
    out = torch.full((len(SEEDS), *shape), torch.nan)
    philox.normal(words(SEEDS), words([draw] * len(SEEDS)), out)
    assert_same_bits(out, normal_ref(SEEDS, draw, shape), "normal")


def test_normal_writes_nothing_else():
    out = torch.full([3 * 7 + 5], torch.nan)
    philox.normal(words([1, 2, 3]), words([0, 0, 0]), out[:21].view(3, 7))
    assert not out[:21].isnan().any()
    assert out[21:].isnan().all()


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32], ids=str)
def test_draws_of_any_size(state_dtype):
    _, state = Case((Op.BEGIN, Op.EULER), (2, 5, 5), state_dtype).build()
    for draw in (2**32 - 1, 2**40 + 7, 2**52):
        state.table[:, COLUMNS.index("draw")] = draw
        compare(torch.zeros(2, 2, 5, 5), state)


@pytest.mark.parametrize("net_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32], ids=str)
def test_roundings_and_numbers_that_are_none(net_dtype, state_dtype):
    """Ties, overflow, subnormals, signed zeros, infinities and NaN, in F, in x and in the network's next input."""
    flat = torch.contiguous_format
    F, state = Case((Op.EULER, Op.LINEAR, Op.CORRECT), (4, 16, 16), state_dtype, net_dtype, flat, churn=False).build()
    tiny = torch.finfo(net_dtype).smallest_normal
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, tiny, -tiny, tiny / 4, torch.finfo(net_dtype).max, 1.0, -1.0]
    )
    F.view(-1)[: len(special)] = special.to(net_dtype)
    F.view(-1)[200 : 200 + len(special)] = special.flip(0).to(net_dtype)
    eps = torch.finfo(net_dtype).eps
    ties = torch.cat([1 + eps * torch.arange(0, 60, dtype=torch.float64) / 4, tiny * torch.arange(0, 60) / 512])
    state.x.view(-1)[: len(ties)] = ties
    state.x[1:].view(-1)[: len(ties)] = -ties
    table = state.table
    for name, value in {"s": 1, "s_next": 1, "c_in": 1, "c_skip": 1, "c_out": 0, "h": 0, "evaluate": 1}.items():
        table[:, COLUMNS.index(name)] = value
    state = compare(F, state)
    assert (state.bad_row >= 0).any()
    kept = Case((Op.EULER,), (4, 16, 16), state_dtype, net_dtype, flat, churn=False).build()[1]
    kept.x.view(-1)[: len(ties)], kept.table = ties, table[1:2].repeat(3, 1)
    compare(torch.ones(1, 4, 16, 16, dtype=net_dtype), kept)
    bits = kept.net_in.view(torch.int32 if net_dtype == torch.float32 else torch.int16)
    assert len(bits.unique()) > 60  # the ties arrived at the rounding


def strided(F):
    """F in layouts other than the two: transposed, a slice, padded rows, one value for all, samples apart."""
    wide = torch.randn(len(F), 2 * F.shape[1], F.shape[2], F.shape[3] + 3)
    wide[:, ::2, :, :-3] = F
    apart = torch.randn(3 * len(F), *F.shape[1:])
    apart[::3] = F
    last = F.contiguous(memory_format=torch.channels_last)
    return {
        "transposed": F.transpose(2, 3).contiguous().transpose(2, 3),
        "padded rows": wide[:, ::2, :, :-3],
        "expanded": F[:1, :, :1, :1].expand(F.shape),
        "expanded in space": F[:, :, :1, :1].expand(F.shape),
        "samples apart": apart[::3],
        "a channel of channels_last": torch.cat([last, last], 1)[:, 1:4],
    }


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 8, 8)], ids=str)
def test_any_layout_of_the_network_output(shape):
    for name in strided(torch.randn(5, *shape)):
        F, state = Case(tuple(Op), shape).build()
        F = strided(F.contiguous())[name]
        compare(F, state)


def test_one_row_of_zero_sums():
    """keep_slot and store_slot with no coefficient at all write +0, and a sum of negative zeros stays -0."""
    F, state = Case((Op.LINEAR,) * 2, (2, 4, 4), churn=False).build()
    for name in COLUMNS:
        if "_from_" in name:
            state.table[:, COLUMNS.index(name)] = 0
    for name, value in {"x_from_x": 1, "keep_slot": 1, "store_slot": 2}.items():
        state.table[:, COLUMNS.index(name)] = value
    state.x.fill_(-0.0)
    compare(F, state)
    assert state.x.signbit().all()
    assert not state.slots[1:3].signbit().any()


def test_noise_too_small_for_the_state_is_still_added():
    """std is 5e-324 and the state float32: 0 * eps is added, which turns -0 into +0 where eps is positive."""
    F, state = Case((Op.LINEAR,) * 2, (2, 8, 8), torch.float32, churn=False).build()
    for name in COLUMNS:
        if "_from_" in name:
            state.table[:, COLUMNS.index(name)] = 0
    for name, value in {"x_from_x": 1, "std": 5e-324, "ratio": 1}.items():
        state.table[:, COLUMNS.index(name)] = value
    state.x.fill_(-0.0)
    compare(F, state)
    assert len(state.x.signbit().unique()) == 2


def test_slots_not_used_are_not_read(monkeypatch):
    """One slot exists, NaN lies behind it; and of each slot it is decided whether memory is touched."""
    touched, load_if = [], advance._load_if
    monkeypatch.setattr(
        advance, "_load_if", lambda needed, *where: touched.append(bool(needed)) or load_if(needed, *where)
    )
    _, state = Case((Op.LINEAR,) * 3, (2, 4, 4), slots=1).build()
    around = torch.full([6, *state.x.shape], torch.nan, dtype=state.x.dtype)
    around[0] = state.slots[0]
    state.slots = around[:1]
    compare(torch.randn(3, 2, 4, 4), state)
    assert around[1:].isnan().all()
    for op, columns, expected in [
        (Op.EULER, {}, [False]),
        (Op.CORRECT, {}, [True]),
        (
            Op.LINEAR,
            {"x_from_x": 1, "x_from_1": 2, "keep_from_2": 3},
            [False, False, True, False, False],
        ),
        (Op.LINEAR, {"x_from_x": 1, "keep_slot": 0, "keep_from_2": 3}, [False, False, False, True, False]),
    ]:
        F, state = Case((op,), (2, 4, 4), churn=False).build()
        for name in COLUMNS:
            if "_from_" in name:
                state.table[:, COLUMNS.index(name)] = columns.get(name, 0)
        state.table[:, COLUMNS.index("keep_slot")] = columns.get("keep_slot", -1)
        touched.clear()
        compare(F, state)
        assert touched == expected, op


@pytest.mark.parametrize(
    ("op", "columns", "lacks"),
    [
        (Op.EULER, {}, "F"),
        (Op.BEGIN, {}, "noise"),
        (Op.EULER, {"std": 0.5}, "noise"),
        (Op.EULER, {"std": 0.5, "draw": 3}, "buffer"),
        (Op.EULER, {"std": 0.5, "draw": -1}, ""),
        (Op.EULER, {"op": 9}, ""),
        (Op.PREDICT, {}, "slots"),
        (Op.CORRECT, {}, "slots"),
        (Op.LINEAR, {"keep_slot": 4}, ""),
        (Op.LINEAR, {"store_slot": 4}, ""),
        (Op.LINEAR, {"x_from_3": 1.0}, "slot 3"),
    ],
)
def test_what_cannot_be_carried_out_is_reported_and_not_advanced(op, columns, lacks):
    F, state = Case((op,) * 2, (2, 4, 4), churn=False, noise="float32" if lacks == "buffer" else "philox").build()
    for name, value in columns.items():
        state.table[2, COLUMNS.index(name)] = value  # the sample at base_row 0
    F = None if lacks == "F" else F
    if lacks == "noise":
        state.noise = Noise(state.noise.shape)
    if "slot" in lacks:
        state.slots = state.slots[: 3 if lacks == "slot 3" else 0].contiguous()
    before = copy.deepcopy(state)
    TRITON.advance(F, state, 2)
    refused = int((state.base_row == 0).nonzero())
    assert state.bad_row[refused] == 2
    for name in ("x", "net_in", "c_noise"):
        assert_same_bits(getattr(state, name)[refused], getattr(before, name)[refused], name)
    assert_same_bits(state.slots[:, refused], before.slots[:, refused], "slots")
    with pytest.raises(ValueError, match=r"^advance: sample \d is at row \d"):
        reference.advance(F, before, 2)


def test_rows_outside_the_table_are_reported_and_not_read():
    F, state = Case((Op.EULER,) * 3, (2, 4, 4)).build()
    state.base_row[:] = torch.tensor([90, 0, -9])
    before = state.x.clone()
    TRITON.advance(F, state, 2)
    assert state.bad_row.tolist() == [92, -1, 0]
    assert_same_bits(state.x[[0, 2]], before[[0, 2]], "x")
    assert not torch.equal(state.x[1], before[1])


def test_an_empty_batch():
    F, state = Case((Op.EULER,), (2, 4, 4)).build()
    state.x, state.slots, state.base_row = state.x[:0], state.slots[:, :0], state.base_row[:0]
    state.net_in, state.c_noise, state.bad_row = state.net_in[:0], state.c_noise[:0], state.bad_row[:0]
    object.__setattr__(state.noise, "seeds", state.noise.seeds[:0])
    TRITON.advance(F[:0], state, 2)


def test_two_programs_a_channel():
    """A sample of several programs in either layout, the last one ragged."""
    for layout in (torch.contiguous_format, torch.channels_last):
        check(TRITON, Case((Op.LINEAR, Op.CORRECT), (2, 23, 31), layout=layout))
