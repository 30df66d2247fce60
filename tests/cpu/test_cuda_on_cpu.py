"""The CUDA kernels run by g++ on the host, one host thread a CUDA thread: their indexing, tails, layouts and reports.

What this cannot show is nvcc's part; tests/unit/test_cuda_source.py reads that, tests/gpu runs it.
"""

import copy
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from engine import reference
from engine.backends import native
from engine.noise import normal_ref, seed_bits
from engine.plan import COLUMNS, Op
from engine.state import Noise
from engine.verify.cases import Case
from tests.cases import assert_same_bits

ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).parent / "cuda_shim"
CSRC = ROOT / "csrc"
GXX = shutil.which("g++")
BUFFERS = ("x", "slots", "net_in", "c_noise", "bad_row")

pytestmark = pytest.mark.skipif(GXX is None or not CSRC.is_dir(), reason="there is no g++, or no csrc/")


class Buffer(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("dtype", ctypes.c_int),
        *((n, ctypes.c_int64) for n in ("batch", "channel", "pixel")),
    )


class AdvanceCall(ctypes.Structure):
    """csrc/advance_call.h's, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ["samples", "channels", "pixels", "table", "base_row", "rows", "k"]),
        ("state_dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ["x", "slots", "slot_count"]),
        *((name, Buffer) for name in ("F", "G", "net_in")),
        *((n, ctypes.c_int64) for n in ["copies", "c_noise", "bad_row", "guide_scale", "known", "seeds"]),
        *((name, Buffer) for name in ("latents", "eps")),
        ("draws", ctypes.c_int64),
    )


def plain(native_struct, structure):
    """A structure of the extension as one of ctypes."""
    result = structure()
    for name, kind in structure._fields_:
        value = getattr(native_struct, name)
        setattr(result, name, plain(value, Buffer) if kind is Buffer else int(value))
    return result


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    sources = [CSRC / f"{name}.cpp" for name in ("advance_op", "normal_op", "advance_isa", "normal_isa", "parallel")]
    flags = ["-std=c++17", "-O0", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-DEDM_ISA=generic", f"-I{SHIM}"]
    subprocess.run([GXX, *flags, "-o", library, SHIM / "driver.cpp", *sources], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.shim_advance.restype = ctypes.c_char_p
    loaded.shim_normal.argtypes = [ctypes.c_uint64] * 3 + [ctypes.c_int64] * 2
    return loaded


def advance(shim, F, state, k=2, G=None):
    error = shim.shim_advance(ctypes.byref(plain(native._call(F, state, k, G), AdvanceCall)))
    assert error is None, error


def compare(shim, F, state, G=None):
    expected = copy.deepcopy(state)
    reference.advance(F, expected, 2, G)
    advance(shim, F, state, 2, G)
    for name in (*BUFFERS, *(["guide_scale"] if state.guide_scale is not None else [])):
        assert_same_bits(getattr(state, name), getattr(expected, name), name)


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 7), (1, 33, 16)], ids=str)
def test_all_ops(shim, net_dtype, layout, shape):
    wide, narrow = torch.float64, torch.float32
    for state_dtype, noise in [(wide, "philox"), (narrow, "philox"), (wide, "float32"), (narrow, "float64")]:
        compare(shim, *Case(tuple(Op), shape, state_dtype, net_dtype, layout, noise=noise).build())


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 9), (13, 3, 3), (2, 3, 4, 5), (2, 20, 30)], ids=str)
@pytest.mark.parametrize(("extra", "padded"), [(0, 0), (1, 5)])
def test_ragged_shapes_and_more_channels(shim, shape, extra, padded):
    for layout in (torch.contiguous_format, torch.channels_last):
        case = Case(
            (Op.BEGIN, Op.CORRECT, Op.LINEAR), shape, layout=layout, extra_channels=extra, padded_channels=padded
        )
        compare(shim, *case.build())


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 7)], ids=str)
def test_guidance_and_known_pixels(shim, net_dtype, shape):
    for layout, state_dtype in [(torch.contiguous_format, torch.float64), (torch.channels_last, torch.float32)]:
        case = Case(tuple(Op), shape, state_dtype, net_dtype, layout, guided=True, copies=2, known=True, seed=3)
        F, state = case.build()
        compare(shim, F, state, case.other(F))


def test_memory_that_is_not_aligned_to_16_bytes(shim):
    F, state = Case(tuple(Op), (3, 8, 8), layout=torch.contiguous_format).build()
    for name in ("x", "slots", "net_in"):
        tensor = getattr(state, name)
        moved = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        setattr(state, name, moved.copy_(tensor))
    compare(shim, torch.zeros(F.numel() + 1)[1:].view(F.shape).copy_(F), state)


def test_the_first_non_finite_row_is_kept(shim):
    F, state = Case((Op.EULER, Op.PREDICT, Op.CORRECT, Op.LINEAR), (3, 9, 9), churn=False).build()
    F[1, 2, 8, 8] = torch.nan
    F[3, 0, 0, 0] = torch.inf
    compare(shim, F, state)
    first = state.bad_row.clone()
    assert (first >= 0).tolist() == [False, True, False, True]
    F.fill_(torch.nan)
    advance(shim, F, state, 1)
    assert torch.equal(state.bad_row[[1, 3]], first[[1, 3]])


def test_a_row_that_cannot_be_carried_out_marks_its_sample_and_no_other(shim):
    F, state = Case((Op.EULER, Op.EULER, Op.EULER)).build()
    state.base_row[:] = torch.tensor([90, 0, -9])
    before = copy.deepcopy(state)
    advance(shim, F, state)
    assert state.bad_row.tolist() == [92, -1, 0]
    for b in (0, 2):
        assert_same_bits(state.x[b], before.x[b], "x")
    assert not torch.equal(state.x[1], before.x[1])
    for problem in ({"op": 9}, {"draw": -1, "std": 1.0}, {"op": Op.LINEAR, "keep_slot": 9}, {"op": Op.BEGIN}):
        F, state = Case((Op.EULER,)).build()
        for name, value in problem.items():
            state.table[:, COLUMNS.index(name)] = value
        state.noise = state.noise if "op" not in problem else Noise(state.noise.shape)
        advance(shim, F, state)
        assert state.bad_row.tolist() == [1] if problem != {"op": Op.BEGIN} else state.bad_row[0] >= 0
    F, state = Case((Op.EULER,)).build()
    advance(shim, None, state)
    assert state.bad_row[0] >= 0


@pytest.mark.parametrize("elements", [1, 3, 4, 511, 512, 513, 2050])
def test_normal(shim, elements):
    seeds, draws = seed_bits([0, 2**64 - 1, 5], torch.device("cpu")), torch.tensor([0, 3, 2**62])
    out = torch.full((3 * elements + 4,), 7.0)
    shim.shim_normal(seeds.data_ptr(), draws.data_ptr(), out.data_ptr(), 3, elements)
    assert_same_bits(out[:-4].view(3, -1), normal_ref([0, 2**64 - 1, 5], draws, (elements,)), "normals")
    assert (out[-4:] == 7).all()
