"""The CUDA `advance` and normals on a device against the reference on the CPU, to the bit; capture; errors."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from engine import noise, reference
from engine.backends import CUDA
from engine.plan import Op
from engine.state import State
from tests.cases import Case, assert_same_bits

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STATES = (torch.float64, torch.float32)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
BUFFERS = ("x", "slots", "net_in", "c_noise", "bad_row")


@pytest.fixture(scope="module", autouse=True)
def _runs_here():
    reasons = CUDA.not_supported_reasons(torch.device("cuda"), torch.float64)
    if reasons:
        pytest.skip(f"the CUDA backend cannot run here: {'; '.join(reasons)}")


def moved(state, device="cuda"):
    """A copy of a state on another device, strides kept."""

    def there(t):
        return t.to(device, copy=True) if isinstance(t, torch.Tensor) else t

    tensors = {name: there(t) for name, t in vars(state).items() if name != "noise"}
    return State(**tensors, noise=replace(state.noise, **{n: there(t) for n, t in vars(state.noise).items()}))


def same(state, expected, what):
    for name in BUFFERS:
        assert_same_bits(getattr(state, name).cpu(), getattr(expected, name), f"{name} of {what}")


def check(case):
    F, state = case.build()
    F = None if set(case.ops) == {Op.BEGIN} else F
    there = moved(state)
    CUDA.advance(None if F is None else F.to("cuda"), there, 2)
    reference.advance(F, state, 2)
    assert there.net_in.stride() == state.net_in.stride()
    same(there, state, case)


@pytest.mark.parametrize("state_dtype", STATES, ids=str)
@pytest.mark.parametrize("net_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["philox", "float32", "float64"])
def test_all_ops_in_one_batch(state_dtype, net_dtype, layout, kind):
    for seed, churn in itertools.product(range(4), [True, False]):
        check(Case(tuple(Op) * 3, (3, 32, 32), state_dtype, net_dtype, layout, churn, kind, seed=seed))


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (5, 9), (1, 1, 1), (3, 5, 7), (1, 28, 28), (4, 16, 8), (13, 3, 3), (2, 3, 4, 5), (3, 64, 64)],
    ids=str,
)
def test_each_op_on_ragged_shapes(op, shape):
    for layout, state_dtype, more in itertools.product(LAYOUTS, STATES, [(0, 0), (3, 0), (0, 5)]):
        extra, padded = more
        case = Case((op,) * 3, shape, state_dtype, torch.bfloat16, layout, seed=1)
        check(replace(case, extra_channels=extra, padded_channels=padded))


def test_unaligned_memory_and_strange_strides():
    F, state = Case(tuple(Op), (3, 8, 8)).build()
    there = moved(state)
    for name in ("x", "slots"):
        t = getattr(there, name)
        setattr(there, name, t.new_zeros(t.numel() + 1)[1:].view(t.shape).copy_(t))
    wide = F.new_zeros(len(F), 3, 8, 9).cuda()
    wide[..., 1:] = F.cuda()
    CUDA.advance(wide[..., 1:], there, 2)
    reference.advance(F, state, 2)
    same(there, state, "unaligned")


def test_the_first_non_finite_row_is_kept():
    F, state = Case((Op.EULER, Op.PREDICT, Op.CORRECT, Op.LINEAR), (3, 9, 9), churn=False).build()
    F[1, 2, 8, 8] = torch.nan
    F[3, 0, 0, 0] = torch.inf
    there = moved(state)
    for k, output in [(2, F), (1, torch.full_like(F, torch.nan))]:
        CUDA.advance(output.cuda(), there, k)
        reference.advance(output, state, k)
        assert_same_bits(there.bad_row.cpu(), state.bad_row, "bad_row")


def test_a_row_that_cannot_be_carried_out_marks_its_sample():
    F, state = Case((Op.EULER,) * 3).build()
    there = moved(state)
    there.base_row.copy_(torch.tensor([90, 0, -9]))
    CUDA.advance(F.cuda(), there, 2)
    assert there.bad_row.tolist() == [92, -1, 0]
    there = moved(state)
    CUDA.advance(None, there, 2)
    assert (there.bad_row >= 0).all()


def test_capture_replays_the_same_bits():
    """A whole batch of rows in one CUDA graph, on a side stream: no allocation, no synchronisation."""
    F, state = Case(tuple(Op) * 2, (3, 32, 32)).build()
    there, output = moved(state), F.cuda()
    CUDA.advance(output, copy.deepcopy(there), 2)  # loads the kernel
    start = copy.deepcopy(there)
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.memory_allocated()
    with torch.cuda.graph(graph):
        CUDA.advance(output, there, 2)
        CUDA.advance(output, there, 1)
    assert torch.cuda.memory_allocated() == before
    reference.advance(F, state, 2)
    reference.advance(F, state, 1)
    for _ in range(2):
        for name in BUFFERS:
            getattr(there, name).copy_(getattr(start, name))
        graph.replay()
        same(there, state, "a replay")


def test_it_runs_on_the_current_stream():
    F, state = Case(tuple(Op), (3, 32, 32)).build()
    there = moved(state)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        output = F.cuda()
        CUDA.advance(output, there, 2)
    stream.synchronize()
    reference.advance(F, state, 2)
    same(there, state, "a side stream")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (512,), (513,), (3, 7, 5), (3, 256, 256)], ids=str)
def test_normals(shape):
    seeds, draws = [0, 1, 2**63, 2**64 - 1], [0, 2**32, 7, 2**63 - 1]
    expected = noise.normal_ref(seeds, draws, shape)
    for backend in ("cuda", "auto"):
        assert_same_bits(noise.normal(seeds, draws, shape, backend=backend, device="cuda").cpu(), expected, backend)
    assert noise.normal([], 0, shape, backend="cuda", device="cuda").shape == (0, *shape)


def test_a_failed_launch_is_an_error_with_the_reason():
    from engine import _native

    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        _native.normal_cuda(8, 8, 8, 1, 1, device=10_000, stream=0)
    assert_same_bits(noise.normal([1], 0, (4,), device="cuda").cpu(), noise.normal_ref([1], 0, (4,)), "afterwards")
