"""The C++ `advance` against the reference, to the bit: instruction sets, threads, layouts, halves, bounds, errors."""

import copy
import itertools
import mmap
import os
import signal
import threading
from dataclasses import astuple

import pytest
import torch

from engine import _native, reference
from engine.backends import native
from engine.noise import seed_bits
from engine.plan import COLUMNS, Op, Row
from engine.state import Noise, State
from engine.verify.cases import Case
from tests.cases import assert_same_bits

ISAS = _native.normal_isas()
STATES = (torch.float64, torch.float32)
NETWORKS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BUFFERS = ("x", "slots", "net_in", "c_noise", "bad_row")


def compare(F, state, k=2, **how):
    expected = copy.deepcopy(state)
    reference.advance(F, expected, k)
    native.advance_cpu(F, state, k, **how)
    for name in BUFFERS:
        assert_same_bits(getattr(state, name), getattr(expected, name), f"{name} with {how}")


def one_row(row, x, net_dtype, F_dtype=None):
    """A batch of one at a row, with seeds."""
    state = State.allocate(
        torch.tensor([astuple(row)], dtype=torch.float64),
        1,
        Noise(tuple(x.shape), seeds=seed_bits([7], torch.device("cpu"))),
        torch.zeros(1, dtype=torch.int64),
        state_dtype=x.dtype,
        net_dtype=net_dtype,
    )
    state.x.copy_(x[None])
    return state


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("net_dtype", NETWORKS, ids=str)
def test_every_isa_thread_count_and_dtype(isa, threads, net_dtype):
    """Enough elements that the threads are started (16384 each), and planes that are no multiple of a run."""
    for state_dtype, layout in itertools.product(STATES, (torch.contiguous_format, torch.channels_last)):
        for shape in [(3, 41, 43), (2, 64, 40)]:
            case = Case((*tuple(Op), *tuple(Op)), shape, state_dtype, net_dtype, layout, seed=threads)
            compare(*case.build(), threads=threads, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_one_sample_is_split_over_threads(isa):
    case = Case((Op.LINEAR,), (3, 149, 151), layout=torch.channels_last, seed=3)
    compare(*case.build(), threads=3, isa=isa)
    F, state = Case((Op.EULER,), (1, 300, 300), churn=False).build()
    F[0, 0, 299, 299] = torch.inf
    compare(F, state, threads=3, isa=isa)
    assert state.bad_row[0] >= 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_is_read(isa, dtype):
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, 1, 256, 256)
    state = one_row(Row(Op.EULER, c_skip=1.0, c_out=1.0, h=-1.0), torch.zeros(1, 256, 256, dtype=torch.float32), dtype)
    compare(halves, state, 0, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_halves(isa, dtype):
    """Every half, the midpoint to the next one, and the float32 values around both: ties go to even."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    middles = (halves.double() + halves.roll(-1).double()).mul(0.5).float()
    values = torch.cat([halves, middles])
    around = [torch.nextafter(values, torch.full_like(values, end)) for end in (-torch.inf, torch.inf)]
    random = (
        torch.randint(-(2**31), 2**31, (2**17,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    )
    x = torch.cat([values, *around, random]).reshape(1, -1, 256)
    row = Row(Op.LINEAR, x_from_x=1.0, evaluate=1.0, c_in=1.0)
    state = one_row(row, x, dtype)
    compare(torch.zeros(1, *x.shape, dtype=dtype), state, 0, isa=isa)
    assert_same_bits(state.net_in[0], x.to(dtype), "net_in")


@pytest.mark.parametrize(("F_dtype", "net_dtype"), list(itertools.permutations(NETWORKS, 2)), ids=str)
def test_network_output_and_input_of_different_dtypes(F_dtype, net_dtype):
    F, state = Case(tuple(Op), (3, 6, 6), net_dtype=net_dtype).build()
    compare(F.to(F_dtype), state)


def views(F):
    """The values of F in other memory."""
    batch, channels, height, width = F.shape
    wide = F.new_zeros(2 * batch, channels + 2, height, width)
    wide[::2, 1:-1] = F
    yield wide[::2, 1:-1]
    rows = F.new_zeros(batch, channels, height, 2 * width)
    rows[..., ::2] = F
    yield rows[..., ::2]
    columns = F.new_zeros(batch, channels, height, width + 1)
    columns[..., :-1] = F
    yield columns[..., :-1]  # pixels do not lie at one stride
    yield F.transpose(2, 3).contiguous().transpose(2, 3)
    yield F.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    yield F[:1, :1, :1, :1].expand_as(F)
    yield F[..., :1].expand_as(F)  # one stride of 0, the others not
    yield F[:, :, :1].expand_as(F)


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("net_dtype", [torch.float32, torch.bfloat16])
def test_any_strides_of_the_network_output(index, net_dtype):
    F, state = Case(tuple(Op), (3, 5, 8), net_dtype=net_dtype).build()
    compare(list(views(F))[index], state)


def test_strides_beyond_32_bits():
    """Offsets of 2^33 elements in memory that is reserved but, except for the pages touched, not there."""
    no_reserve = 0x4000  # Linux's MAP_NORESERVE, which the module mmap does not name
    memory = mmap.mmap(-1, 2**36, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    storage = torch.frombuffer(memory, dtype=torch.float32)
    F, state = Case((Op.EULER, Op.LINEAR), (3, 8, 8)).build()
    far = torch.as_strided(storage, F.shape, (2**33 + 8, 2**31 + 64, 8, 1))
    far.copy_(F)
    compare(far, state)
    F, state = Case((Op.EULER, Op.LINEAR), (3, 8, 8)).build()
    expected = copy.deepcopy(state)
    state.net_in = torch.as_strided(storage, F.shape, far.stride(), 2**20)
    reference.advance(F, expected, 2)
    native.advance_cpu(F, state, 2)
    assert expected.net_in.any()
    assert_same_bits(state.net_in, expected.net_in, "net_in")


def test_index_arithmetic_has_64_bits():
    buffer = _native.Buffer(0, _native.Dtype.float32, 2**40, 2**33, 3)
    assert _native.offset_of(buffer, 5, 2, 2**35) == 5 * 2**40 + 2 * 2**33 + 3 * 2**35
    assert _native.run_count(3, 2**40 + 1, 4) == (2**40 + 1 + 3 + 3) // 4
    assert _native.run_of(2**33 + 1, 2**20 + 1, 2**31, 4) == (2**33 - 1, 0, 2)


@pytest.mark.parametrize("width", [4, 256])
@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 5, 7, 49, 255, 256, 257, 260, 1021])
def test_runs_cover_every_plane_once(width, pixels):
    """Every pixel is in one run, and lane 0 of a run is the first element of a Philox counter."""
    for channels in range(1, 6):
        for c in range(channels):
            covered = []
            for index in range(_native.run_count(channels, pixels, width)):
                first, low, high = _native.run_of(pixels, c, index, width)
                assert (c * pixels + first) % 4 == 0
                assert low >= 0
                assert high <= width
                covered += range(first + low, first + high)
            assert covered == list(range(pixels))


def guarded(tensor):
    """The tensor inside a larger buffer of sevens, same strides; the buffer."""
    buffer = torch.full((tensor.numel() + 128,), 7.0, dtype=tensor.dtype)
    inside = buffer[64:-64].as_strided(tensor.shape, tensor.stride())
    inside.copy_(tensor)
    return inside, buffer


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 16, 16), (1, 17, 31)])
def test_nothing_is_written_outside(isa, shape):
    for op, layout in itertools.product(Op, (torch.contiguous_format, torch.channels_last)):
        F, state = Case((op,) * 2, shape, layout=layout).build()
        state.x, x = guarded(state.x)
        state.slots, slots = guarded(state.slots)
        state.net_in, net_in = guarded(state.net_in)
        compare(F, state, isa=isa)
        for buffer in (x, slots, net_in):
            assert (buffer[:64] == 7).all()
            assert (buffer[-64:] == 7).all()


def test_calls_from_several_threads():
    """All at once and again and again, so that one finds the pool taken by another."""
    F, start = Case(tuple(Op), (3, 64, 64)).build()
    expected = copy.deepcopy(start)
    reference.advance(F, expected, 2)
    barrier, wrong = threading.Barrier(4), []

    def work():
        for _ in range(25):
            state = copy.deepcopy(start)
            barrier.wait()
            native.advance_cpu(F, state, 2, threads=3)
            wrong.extend(n for n in BUFFERS if not torch.equal(getattr(state, n), getattr(expected, n)))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_has_a_pool_of_its_own():
    """The child computes with our threads only: torch's OpenMP does not survive a fork."""
    F, state = Case(tuple(Op), (3, 64, 64)).build()
    expected = copy.deepcopy(state)
    native.advance_cpu(F, expected, 2, threads=2)  # there is a pool
    wanted = [getattr(expected, name).numpy().tobytes() for name in BUFFERS]
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        native.advance_cpu(F, state, 2, threads=2)
        os._exit(0 if [getattr(state, name).numpy().tobytes() for name in BUFFERS] == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_flushed_subnormals_of_the_caller_change_nothing(threads):
    """f16's subnormals go through float32's; a caller that flushes those gets the same bits."""
    tiny = torch.full((4, 3, 64, 64), 2.0**-20, dtype=torch.float16)
    row = Row(Op.EULER, c_out=1.0, h=-1.0, evaluate=1.0, c_in=1.0)
    kept, flushed = (one_row(row, torch.zeros(3, 64, 64, dtype=torch.float32), torch.float16) for _ in range(2))
    native.advance_cpu(tiny[:1], kept, 0, threads=threads)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        native.advance_cpu(tiny[:1], flushed, 0, threads=threads)
    finally:
        torch.set_flush_denormal(False)
    assert kept.x.all()
    for name in BUFFERS:
        assert torch.equal(getattr(kept, name), getattr(flushed, name)), name


def test_an_extension_for_another_table_is_refused(monkeypatch):
    assert tuple(_native.row_columns()) == COLUMNS
    assert not native.cpu_not_supported_reasons(torch.device("cpu"), torch.float64)
    monkeypatch.setattr(native, "COLUMNS", (*COLUMNS[1:], COLUMNS[0]))
    for reasons in (native.cpu_not_supported_reasons, native.cuda_not_supported_reasons):
        assert "other table columns" in reasons(torch.device("cpu"), torch.float64)[0]


def test_reasons():
    assert native.cpu_not_supported_reasons(torch.device("meta"), torch.float64) == ["the device is meta, not a CPU"]
    assert "torch.float16" in native.cpu_not_supported_reasons(torch.device("cpu"), torch.float16)[0]
    assert "the device is cpu, not a CUDA device" in native.cuda_not_supported_reasons(
        torch.device("cpu"), torch.float64
    )


def change_row(state, **columns):
    for name, value in columns.items():
        state.table[:, COLUMNS.index(name)] = value


def no_noise(state):
    change_row(state, op=Op.EULER)
    state.noise = Noise(state.noise.shape)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.base_row.fill_(9), IndexError, r"sample 0 is at row 11; the table has 4 rows"),
        (lambda s: s.base_row.fill_(-3), IndexError, r"sample 0 is at row -1; the table has 4 rows"),
        (lambda s: change_row(s, op=7), ValueError, r"sample 0 is at row 2: its op is unknown"),
        (no_noise, ValueError, r"neither seeds nor a buffer"),
        (lambda s: change_row(s, op=Op.EULER, draw=-1), ValueError, r"its draw is negative"),
        (lambda s: setattr(s, "slots", s.slots[:0]), ValueError, r"a slot that is not allocated"),
        (lambda s: setattr(s, "x", s.x.half()), ValueError, r"^x is torch.float16 .*allowed: torch.float64 or"),
        (lambda s: setattr(s, "x", s.x.transpose(2, 3)), ValueError, r"^x is .*contiguous"),
        (lambda s: setattr(s, "bad_row", s.bad_row[:1]), ValueError, r"^bad_row is .*allowed: torch.int64 \[2\]"),
        (lambda s: setattr(s, "net_in", s.net_in[:, :2]), ValueError, r"^net_in is .*\[2, 3, 8, 8\] or more"),
        (lambda s: setattr(s, "table", s.table[:, 1:]), ValueError, r"^table is .*allowed: torch.float64 \[4, 39\]"),
    ],
)  # fmt: skip
def test_errors_before_any_work(change, error, message):
    F, state = Case((Op.PREDICT, Op.PREDICT), (3, 8, 8)).build()
    change_row(state, std=1.0)
    state.base_row.fill_(0)
    change(state)
    before = copy.deepcopy(state)
    with pytest.raises(error, match=message):
        native.advance_cpu(F, state, 2)
    for name in BUFFERS:
        assert_same_bits(getattr(state, name), getattr(before, name), name)


def test_a_draw_beyond_the_buffer_and_a_missing_output():
    F, state = Case((Op.EULER,), noise="float32").build()
    change_row(state, std=1.0, draw=3)
    with pytest.raises(ValueError, match="beyond the noise buffer"):
        native.advance_cpu(F, state, 2)
    with pytest.raises(ValueError, match="F is None"):
        native.advance_cpu(None, state, 2)
    with pytest.raises(ValueError, match=r'^isa must be one of "auto",.* got "sse9"$'):
        native.advance_cpu(F, state, 2, isa="sse9")
    with pytest.raises(ValueError, match=r"threads must be in \[1, 1024\], got 1025"):
        native.advance_cpu(F, state, 2, threads=1025)


def test_latents_may_come_from_a_buffer_and_noise_from_seeds():
    F, state = Case(tuple(Op)).build()
    latents = torch.randn(state.x.shape, dtype=torch.float64)
    state.noise = Noise(state.noise.shape, seeds=state.noise.seeds, latents=latents)
    compare(F, state)
    eps = torch.randn(3, *state.x.shape)
    state.noise = Noise(state.noise.shape, seeds=state.noise.seeds, eps=eps)
    compare(F, state)


def test_an_empty_batch_is_nothing_to_do():
    F, state = Case((Op.EULER,)).build()
    state.x, state.slots, state.net_in = state.x[:0], state.slots[:, :0], state.net_in[:0]
    state.c_noise, state.base_row, state.bad_row = state.c_noise[:0], state.base_row[:0], state.bad_row[:0]
    state.noise = Noise(state.noise.shape, seeds=state.noise.seeds[:0])
    native.advance_cpu(F[:0], state, 2)


@pytest.mark.parametrize("value", [-0.0, torch.inf])
def test_a_coefficient_too_small_for_the_state_still_takes_part(value):
    """Whether a term is there is decided in float64: -0 plus 0 times it is +0, and 0 times infinity is NaN."""
    tiny = 5e-324
    x = torch.full((3, 8, 8), -0.0, dtype=torch.float32)
    F = torch.full((1, 3, 8, 8), value)
    D = Row(Op.LINEAR, c_out=1.0, x_from_x=1.0, x_from_D=tiny, keep_slot=0, keep_from_x=1.0, evaluate=1.0, c_in=1.0)
    noise = Row(Op.LINEAR, x_from_x=1.0, std=tiny, evaluate=1.0, c_in=1.0)
    for row in (D, noise, D.then(x_from_D=0.0)):
        compare(F, one_row(row, x, torch.float32), 0)


@pytest.mark.parametrize("op", [Op.BEGIN, Op.EULER, Op.CORRECT, Op.LINEAR])
@pytest.mark.parametrize(
    "columns", [{"ratio": 0.7}, {"ratio": 1.0, "std": 0.7}, {"s": 1.0}, {"slope_t": 1.0}, {"s_next": 1.0}]
)
def test_each_kind_of_row_that_skips_something(op, columns):
    """A ratio without noise, noise without a ratio, and divisors of one, each alone."""
    F, state = Case((op,) * 2, (3, 5, 8), churn=False).build()
    change_row(state, **columns)
    compare(F, state)


@pytest.mark.parametrize("isa", _native.normal_isas())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_states_larger_than_the_caches(isa, dtype):
    """Slopes and network inputs are then written past them, in pieces that do not begin where samples do."""
    F, state = Case((Op.PREDICT, Op.EULER) * 95, (3, 62, 62), net_dtype=dtype, churn=False).build()
    assert state.x.nbytes > 16 << 20
    expected = copy.deepcopy(state)
    reference.advance(F, expected, 2)
    native.advance_cpu(F, state, 2, threads=3, isa=isa)
    for name in BUFFERS:
        assert_same_bits(getattr(state, name), getattr(expected, name), name)
