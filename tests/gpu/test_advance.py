"""`advance` of every backend that runs on a CUDA device against the reference on the CPU, to the bit.

The reference runs on the CPU, so that nothing it computes is computed by what is under test.
"""

import copy
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from engine import reference
from engine.backends import CUDA, TRITON
from engine.plan import COLUMNS, Op
from engine.state import State
from engine.verify.cases import Case
from engine.verify.cases import moved as moved_to
from tests.cases import assert_same_bits

F64 = torch.float64
STATES = (F64, torch.float32)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, F64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
BUFFERS = ("x", "slots", "net_in", "c_noise", "bad_row")
moved = partial(moved_to, device="cuda")


@pytest.fixture(params=[CUDA, TRITON], ids=lambda b: b.name)
def backend(request):
    reasons = request.param.not_supported_reasons(torch.device("cuda"), F64)
    if reasons:
        pytest.skip(f"the {request.param.name} backend cannot run here: {'; '.join(reasons)}")
    return request.param


def same(state, expected, what):
    for name in (*BUFFERS, *(["guide_scale"] if state.guide_scale is not None else [])):
        assert_same_bits(getattr(state, name).cpu(), getattr(expected, name), f"{name} of {what}")


def check(backend, case, edit=lambda F: F):
    if backend.not_supported_reasons(torch.device("cuda"), case.state_dtype, case.net_dtype):
        pytest.skip("Triton's backend refuses float64 networks")
    F, state = case.build()
    F = None if set(case.ops) == {Op.BEGIN} else edit(F)
    there = moved(state)
    G = None if F is None else case.other(F)
    backend.advance(None if F is None else F.to("cuda"), there, 2, None if G is None else G.to("cuda"))
    reference.advance(F, state, 2, G)
    assert there.net_in.stride() == state.net_in.stride()
    same(there, state, case)


@pytest.mark.parametrize("state_dtype", STATES, ids=str)
@pytest.mark.parametrize("net_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["philox", "float32", "float64"])
def test_all_ops_in_one_batch(backend, state_dtype, net_dtype, layout, kind):
    for seed, churn in itertools.product(range(4), [True, False]):
        check(backend, Case(tuple(Op) * 3, (3, 32, 32), state_dtype, net_dtype, layout, churn, kind, seed=seed))


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
@pytest.mark.parametrize(
    "shape",
    [(1,), (7,), (5, 9), (1, 1, 1), (3, 5, 7), (1, 28, 28), (4, 16, 8), (13, 3, 3), (2, 3, 4, 5), (3, 64, 64)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_each_op_on_ragged_shapes(backend, op, shape):
    for layout, state_dtype, more in itertools.product(LAYOUTS, STATES, [(0, 0), (3, 0), (0, 5)]):
        extra, padded = more
        case = Case((op,) * 3, shape, state_dtype, torch.bfloat16, layout, seed=1)
        check(backend, replace(case, extra_channels=extra, padded_channels=padded))


@pytest.mark.parametrize("net_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_guidance_and_known_pixels(backend, net_dtype, layout):
    for shape, state_dtype in itertools.product([(3, 64, 64), (3, 5, 7), (1, 28, 28)], STATES):
        case = Case(tuple(Op) * 2, shape, state_dtype, net_dtype, layout, guided=True, copies=2, known=True)
        check(backend, case)


def test_any_layout_of_the_network_output(backend):
    check(backend, Case(tuple(Op), (3, 8, 6)), lambda F: F.transpose(2, 3).contiguous().transpose(2, 3))
    check(backend, Case(tuple(Op), (3, 8, 6)), lambda F: torch.cat([F, F], 3)[..., :6])


def test_numbers_that_are_none(backend):
    def edit(F):
        F = F.contiguous()
        special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 3e38])
        F.view(-1)[: len(special)] = special.to(F.dtype)
        return F

    for state_dtype, net_dtype in itertools.product(STATES, DTYPES[:3]):
        check(backend, Case((Op.LINEAR, Op.EULER, Op.CORRECT) * 2, (3, 32, 32), state_dtype, net_dtype), edit)


def test_unaligned_memory(backend):
    F, state = Case(tuple(Op), (3, 8, 8)).build()
    there = moved(state)
    for name in ("x", "slots"):
        t = getattr(there, name)
        setattr(there, name, t.new_zeros(t.numel() + 1)[1:].view(t.shape).copy_(t))
    backend.advance(F.cuda(), there, 2)
    reference.advance(F, state, 2)
    same(there, state, "unaligned")


@pytest.mark.slow
def test_many_random_cases(backend):
    generator = torch.Generator().manual_seed(0)

    def pick(options):
        return options[int(torch.randint(len(options), [1], generator=generator))]

    for seed in range(300):
        shape = (pick([1, 2, 3, 4, 7]), pick([1, 5, 8, 16, 33]), pick([1, 4, 9, 32]))
        kind, ops = pick(["philox", "float32", "float64"]), tuple(pick(list(Op)) for _ in range(pick([1, 2, 9])))
        case = Case(ops, shape, pick(STATES), pick(DTYPES[:3]), pick(LAYOUTS), pick([True, False]), kind, seed=seed)
        check(backend, case)


def test_the_first_non_finite_row_is_kept(backend):
    F, state = Case((Op.EULER, Op.PREDICT, Op.CORRECT, Op.LINEAR), (3, 9, 9), churn=False).build()
    F[1, 2, 8, 8] = torch.nan
    F[3, 0, 0, 0] = torch.inf
    there = moved(state)
    for k, output in [(2, F), (1, torch.full_like(F, torch.nan))]:
        backend.advance(output.cuda(), there, k)
        reference.advance(output, state, k)
        assert_same_bits(there.bad_row.cpu(), state.bad_row, "bad_row")


def test_a_row_that_cannot_be_carried_out_marks_its_sample(backend):
    F, state = Case((Op.EULER,) * 3).build()
    there = moved(state)
    there.base_row.copy_(torch.tensor([90, 0, -9]))
    before = there.x.clone()
    backend.advance(F.cuda(), there, 2)
    assert there.bad_row.tolist() == [92, -1, 0]
    assert torch.equal(there.x[[0, 2]], before[[0, 2]])
    there = moved(state)
    backend.advance(None, there, 2)
    assert (there.bad_row >= 0).all()
    there = moved(state)
    there.table[:, COLUMNS.index("op")] = Op.LINEAR
    there.table[:, COLUMNS.index("keep_slot")] = 4
    backend.advance(F.cuda(), there, 2)
    assert (there.bad_row >= 0).all()


def test_capture_replays_the_same_bits(backend):
    """Two rows in one CUDA graph: no allocation, no synchronisation."""
    F, state = Case(tuple(Op) * 2, (3, 32, 32)).build()
    there, output = moved(state), F.cuda()
    backend.advance(output, copy.deepcopy(there), 2)  # loads or compiles the kernel
    start = copy.deepcopy(there)
    held, graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(held):  # with the first graph that is alive torch allocates its default generator's seed
        output.neg()
    before = torch.cuda.memory_allocated()
    with torch.cuda.graph(graph):
        backend.advance(output, there, 2)
        backend.advance(output, there, 1)
    assert torch.cuda.memory_allocated() == before
    reference.advance(F, state, 2)
    reference.advance(F, state, 1)
    for _ in range(2):
        for name in BUFFERS:
            getattr(there, name).copy_(getattr(start, name))
        graph.replay()
        same(there, state, "a replay")


def test_it_runs_on_the_current_stream(backend):
    F, state = Case(tuple(Op), (3, 32, 32)).build()
    there, output = moved(state), F.cuda()
    backend.advance(output, copy.deepcopy(there), 2)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(output)
        torch.cuda._sleep(50_000_000)  # the default stream would read the zeros
        late.copy_(output)
        backend.advance(late, there, 2)
    stream.synchronize()
    reference.advance(F, state, 2)
    same(there, state, "a side stream")


@pytest.mark.slow
def test_more_than_2_to_31_elements(backend):
    """The first and the last of 2049 samples of 2^20 elements give the bits they give alone."""
    batch, shape = 2049, (1, 1024, 1024)
    if torch.cuda.mem_get_info()[0] < 45 << 30:
        pytest.skip("needs 45 GiB of free device memory")
    F, small = Case((Op.PREDICT,), shape, torch.float32, torch.float16, churn=False, slots=1).build("cuda")
    small.table[:, COLUMNS.index("op")] = torch.tensor([Op.BEGIN, Op.BEGIN, Op.PREDICT], device="cuda").double()
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
        backend.advance(None, state, 1)
        backend.advance(F.expand(len(state.x), *F.shape[1:]), state, 2)
        return state

    everything = run(slice(None))
    for b in (0, batch - 1):
        alone = run(slice(b, b + 1))
        for name in ("x", "net_in", "c_noise", "bad_row"):
            assert_same_bits(getattr(everything, name)[b], getattr(alone, name)[0], name)
        assert_same_bits(everything.slots[0, b], alone.slots[0, 0], "slots")


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(tool):
    """Ragged shapes, tails and unaligned memory under the sanitizer: no access outside a buffer, no race."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    which = "cuda and (unaligned or 3x5x7 or 1x28x28 or marks_its_sample or non_finite)"
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__), "-k", which]
    # Triton and CUDA's own libraries ask the driver for what it may not have, which is no error of theirs.
    options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "all", "--report-api-errors", "no"]
    returned, said = ran([sanitizer, *options, *tests], seconds=240)
    refused = re.search("Error: (Device not supported.*)", said)
    if refused:
        pytest.skip(f"compute-sanitizer: {refused[1]}")
    assert returned == 0, said[-6000:]
    assert "13 passed" in said  # 5 ops of 2 shapes, 3 others


def ran(command, seconds):
    """A command's exit status and what it said. Fails, and ends all its processes, when it takes longer."""
    options = {"cwd": Path(__file__).parents[2], "start_new_session": True, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            pytest.fail(f"not ended after {seconds} s: {said[-4000:]}")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said
