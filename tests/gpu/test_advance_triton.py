"""The Triton kernels on a CUDA device against the reference on the CPU, to the bit.

The reference runs on the CPU, so that nothing it computes is computed by what is under test.
"""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from engine import noise, reference
from engine.backends import TRITON
from engine.plan import Op
from engine.state import State
from tests.cases import Case, assert_same_bits

pytest.importorskip("triton", reason="Triton is not installed")

from tests.unit import interpreted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STATES = (torch.float64, torch.float32)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
BUFFERS = ("x", "slots", "net_in", "c_noise", "bad_row")


@pytest.fixture(scope="module", autouse=True)
def _runs_here():
    reasons = TRITON.not_supported_reasons(torch.device("cuda"), torch.float64)
    if reasons:
        pytest.skip(f"the Triton backend cannot run here: {'; '.join(reasons)}")


def moved(state: State, device: str) -> State:
    """A copy of a state on another device, strides kept."""
    noise_there = replace(
        state.noise,
        **{
            name: None if (t := getattr(state.noise, name)) is None else t.to(device)
            for name in ("seeds", "latents", "eps")
        },
    )
    tensors = {name: t.to(device, copy=True) for name, t in vars(state).items() if isinstance(t, torch.Tensor)}
    return State(**tensors, noise=noise_there)


def check(case: Case, edit=lambda F: F) -> None:
    F, state = case.build()
    F = None if set(case.ops) == {Op.BEGIN} else edit(F)
    there = moved(state, "cuda")
    TRITON.advance(None if F is None else F.to("cuda"), there, 2)
    reference.advance(F, state, 2)
    assert there.net_in.stride() == state.net_in.stride()
    for name in BUFFERS:
        assert_same_bits(getattr(there, name).cpu(), getattr(state, name), f"{name} of {case}")


@pytest.mark.parametrize("state_dtype", STATES, ids=str)
@pytest.mark.parametrize("net_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("noise", ["philox", "float32", "float64"])
def test_all_ops_in_one_batch(state_dtype, net_dtype, layout, noise):
    for seed, churn in itertools.product(range(4), [True, False]):
        check(Case(tuple(Op) * 3, (3, 32, 32), state_dtype, net_dtype, layout, churn, noise, seed=seed))


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (5, 9), (1, 1, 1), (3, 5, 7), (1, 28, 28), (4, 16, 8), (13, 3, 3), (2, 3, 4, 5), (3, 64, 64)],
    ids=str,
)
def test_each_op_on_ragged_shapes(op, shape):
    for layout, state_dtype in itertools.product(LAYOUTS, STATES):
        check(Case((op,) * 3, shape, state_dtype, torch.bfloat16, layout, seed=1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("extra", "padded"), [(3, 0), (0, 1), (1, 5)])
def test_more_channels_than_the_image(layout, extra, padded):
    for shape in [(3, 8, 8), (3, 5, 7)]:
        check(Case(tuple(Op), shape, layout=layout, extra_channels=extra, padded_channels=padded))


def test_any_layout_of_the_network_output():
    check(Case(tuple(Op), (3, 8, 6)), lambda F: F.transpose(2, 3).contiguous().transpose(2, 3))
    check(Case(tuple(Op), (3, 8, 6)), lambda F: torch.cat([F, F], 3)[..., :6])


def test_numbers_that_are_none():
    def edit(F):
        F = F.contiguous()
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 3e38])
        F.view(-1)[: len(special)] = special.to(F.dtype)
        return F

    for state_dtype, net_dtype in itertools.product(STATES, DTYPES):
        check(Case((Op.LINEAR, Op.EULER, Op.CORRECT) * 2, (3, 32, 32), state_dtype, net_dtype), edit)


@pytest.mark.slow
def test_many_random_cases():
    generator = torch.Generator().manual_seed(0)

    def pick(options):
        return options[int(torch.randint(len(options), [1], generator=generator))]

    for seed in range(300):
        shape = (pick([1, 2, 3, 4, 7]), pick([1, 5, 8, 16, 33]), pick([1, 4, 9, 32]))
        noise, ops = pick(["philox", "float32", "float64"]), tuple(pick(list(Op)) for _ in range(pick([1, 2, 9])))
        check(Case(ops, shape, pick(STATES), pick(DTYPES), pick(LAYOUTS), pick([True, False]), noise, seed=seed))


def test_a_captured_launch_replays_the_same_bits():
    """Two advances, one after the other, in a CUDA graph."""
    F, start = Case(tuple(Op) * 2, (3, 32, 32), net_dtype=torch.bfloat16).build()
    F, start = F.to("cuda"), moved(start, "cuda")
    eager, state = copy.deepcopy(start), copy.deepcopy(start)
    for k in (2, 1):
        TRITON.advance(F, eager, k)  # compiles, too
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for k in (2, 1):
            TRITON.advance(F, state, k)
    for _ in range(3):
        for name in BUFFERS:
            getattr(state, name).copy_(getattr(start, name))
        graph.replay()
        for name in BUFFERS:
            assert_same_bits(getattr(state, name), getattr(eager, name), name)


def test_the_launch_is_on_the_current_stream():
    F, state = Case((Op.EULER,) * 2, (3, 32, 32)).build()
    expected, there, F_there = copy.deepcopy(state), moved(state, "cuda"), F.to("cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(F_there)
        torch.cuda._sleep(50_000_000)  # the default stream would read the zeros
        late.copy_(F_there)
        TRITON.advance(late, there, 2)
    stream.synchronize()
    reference.advance(F, expected, 2)
    assert_same_bits(there.x.cpu(), expected.x, "x")


@pytest.mark.slow
def test_more_than_2_to_31_elements():
    """The first and the last of 2049 samples of 2^20 elements give the bits they give alone."""
    batch, shape = 2049, (1, 1024, 1024)
    if torch.cuda.mem_get_info()[0] < 45 << 30:
        pytest.skip("needs 45 GiB of free device memory")
    F, small = Case((Op.PREDICT,), shape, torch.float32, torch.float16, churn=False, slots=1).build("cuda")
    small.table[2:] = small.table[2]
    small.table[:, 0] = torch.tensor([Op.BEGIN, Op.BEGIN, Op.PREDICT][: len(small.table)], device="cuda")
    seeds = torch.arange(batch, device="cuda")
    base_row = torch.zeros(batch, dtype=torch.int64, device="cuda")

    def run(samples):
        state = State.allocate(
            small.table,
            1,
            replace(small.noise, seeds=seeds[samples]),
            base_row[samples],
            state_dtype=torch.float32,
            net_dtype=torch.float16,
        )
        TRITON.advance(None, state, 1)
        TRITON.advance(F.expand(len(state.x), *F.shape[1:]), state, 2)
        return state

    everything = run(slice(None))
    for b in (0, batch - 1):
        alone = run(slice(b, b + 1))
        for name in ("x", "net_in", "c_noise", "bad_row"):
            assert_same_bits(getattr(everything, name)[b], getattr(alone, name)[0], name)
        assert_same_bits(everything.slots[0, b], alone.slots[0, 0], "slots")


SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 0xDEADBEEFCAFEF00D, 2**64 - 1]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (255,), (511,), (512,), (513,), (1, 32, 32), (3, 7, 5)], ids=str)
@pytest.mark.parametrize("draw", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
def test_normal(draw, shape):
    got = noise.normal(SEEDS, draw, shape, backend="triton", device="cuda")
    assert got.device.type == "cuda"
    assert_same_bits(got.cpu(), noise.normal_ref(SEEDS, draw, shape), "normal")


def test_many_normals():
    """2^23 of them: every polynomial branch, quadrant and rounding of the conversions many times."""
    got = noise.normal([5], 9, (1 << 23,), backend="triton", device="cuda")
    assert_same_bits(got.cpu(), noise.normal([5], 9, (1 << 23,), device="cpu"), "normal")


@pytest.mark.parametrize(("words", "result"), interpreted.KNOWN)
def test_philox_known_answers(words, result):
    assert interpreted.philox_words(torch.tensor(words, device="cuda")).tolist() == result


def test_box_muller_at_the_edges():
    a, b = (words.contiguous() for words in interpreted.edge_words("cuda"))
    expected = torch.stack(noise.box_muller_ref(a.cpu(), b.cpu()), -1)
    assert_same_bits(interpreted.pairs(a, b).cpu(), expected, "pairs")
