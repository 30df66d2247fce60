"""The networks' Triton kernels compiled ahead of time, without a GPU: 16-byte accesses and no spills, as they say."""

import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from engine.kernels import conv, group_norm, residual  # noqa: E402

from engine import kernels  # noqa: E402
from engine.networks import triton_ops  # noqa: E402
from tests import conv_cases  # noqa: E402
from tests.group_norm_cases import case, resampling  # noqa: E402
from tests.ptx import accesses, compiled, launches, resources  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton's interpreter is on: there is nothing to compile", allow_module_level=True)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def made(monkeypatch):
    """made(processors, *arguments, **options): what `triton_ops.group_norm` launches on so many multiprocessors."""

    def launch(processors, arguments, options):
        monkeypatch.setattr(triton_ops, "_processors", lambda device: processors)
        return launches(
            monkeypatch, [group_norm], lambda: triton_ops.group_norm(*arguments, silu=True, **options)
        )  # fmt: skip

    return launch


def check(kernel, launch, sm, folder, vectors=True):
    """No spills; 16-byte loads and stores of the images, where a group's width allows them. The registers used."""
    result = compiled(kernel, launch, sm, folder)
    used = resources(result.asm["cubin"], folder)
    assert used["STACK"] == used["LOCAL"] == 0, used
    if vectors:
        moved = accesses(result.asm["ptx"])
        assert any(re.search(r"ld\.global.*v4\.b32|ld\.global.*v2\.b64", access) for access in moved), moved
        assert any(re.search(r"st\.global.*v4\.b32|st\.global.*v2\.b64", access) for access in moved), moved
    return used["REG"]


ALL = ("add", "scale_shift", "beside", "keep")
SLABS = [
    ((4, 256, 16, 16), BF16, ("add", "keep"), 90),
    ((4, 128, 32, 32), BF16, (), 80),
    ((4, 256, 32, 32), F16, ("keep",), 100),
    ((4, 64, 8, 8), F32, ("scale_shift",), 90),
]


@pytest.mark.parametrize(("shape", "dtype", "given", "sm"), SLABS, ids=str)
def test_one_read(made, tmp_path, shape, dtype, given, sm):
    arguments, each = case(shape, dtype)
    (launch,) = made(1, arguments, {name: each[name] for name in given}).values()
    assert check(group_norm._slab_kernel, launch, sm, tmp_path) <= 128  # a slab of 16 warps fits a multiprocessor
    assert launch.grid[1] == 4


def test_sizes_that_no_grid_has_are_left_to_torch(made):
    """Of tensors on the meta device, whose memory nobody needs."""
    assert group_norm.launches(65535, 8, 64)
    assert not group_norm.launches(65536, 8, 64)
    assert group_norm.launches(1, 8, 65535 * 64)
    assert not group_norm.launches(1, 8, 65535 * 64 + 1)
    assert not group_norm.launches(1, 2**10, 2**21)
    huge = torch.empty(1, 8, 2048, 2048, dtype=BF16, device="meta").contiguous(memory_format=torch.channels_last)
    weight = torch.empty(8, dtype=BF16, device="meta")
    assert made(132, (huge, weight, weight, 2, 1e-5), {}) == {}


def test_one_read_of_narrow_groups(made, tmp_path):
    """6 channels a group, as in ADM: 12 bytes a pixel."""
    arguments, _ = case((1, 192, 8, 8), BF16)
    (launch,) = made(1, arguments, {}).values()
    check(group_norm._slab_kernel, launch, 90, tmp_path, vectors=False)


def test_images_of_one_pixel(made, tmp_path):
    """A size of 1 is a constant to Triton, with other operations than a number has."""
    arguments, _ = case((1, 128, 1, 1), BF16)
    (launch,) = made(1, arguments, {}).values()
    check(group_norm._slab_kernel, launch, 90, tmp_path, vectors=False)
    for name, launch in made(10**6, arguments, {}).items():
        check(getattr(group_norm, name), launch, 90, tmp_path, vectors=False)


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "given", "taps"), [(BF16, ALL, ()), (F16, ("add",), (1, 1)), (F32, ("keep",), (1, 3, 3, 1))], ids=str
)
def test_two_reads(made, monkeypatch, tmp_path, dtype, given, taps, sm):
    """With chunks of one tile for sm_90, where the tile's number is a constant to Triton, and of several for others."""
    (x, weight, bias, _, eps), each = case((2, 128, 32, 32), dtype)
    options = {name: each[name] for name in given}
    if "beside" in given:
        weight, bias = torch.cat([weight, weight[:64]]), torch.cat([bias, bias[:64]])
        options |= {name: wider(options[name]) for name in ("add", "scale_shift")}
    if taps:
        options["resample"] = resampling(taps, up=sm == 90)
    monkeypatch.setattr(group_norm, "LARGEST_SLAB", 0)
    found = made(10**6 if sm == 90 else 4, (x, weight, bias, 32 if "beside" not in given else 48, eps), options)
    assert set(found) == {"_sums_kernel", "_apply_kernel"}
    check(group_norm._sums_kernel, found["_sums_kernel"], sm, tmp_path, vectors=False)
    check(group_norm._apply_kernel, found["_apply_kernel"], sm, tmp_path)
    sums = accesses(compiled(group_norm._sums_kernel, found["_sums_kernel"], sm, tmp_path).asm["ptx"])
    assert any(re.search(r"ld\.global.*v4\.b32|ld\.global.*v2\.b64", access) for access in sums), sums


def wider(parameters):
    """Parameters of one and a half times as many channels."""
    if isinstance(parameters, tuple):
        return tuple(map(wider, parameters))
    return torch.cat([parameters, parameters[:, : parameters.shape[1] // 2]], dim=1)


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_the_end_of_a_residual_block(monkeypatch, tmp_path, dtype, sm):
    y, past = (torch.zeros(2, 128, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    bias = torch.zeros(128, dtype=dtype)
    (launch,) = launches(monkeypatch, [residual], lambda: residual.add_residual(y, bias, past)).values()
    assert check(residual._add_residual_kernel, launch, sm, tmp_path) <= 64


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("tile", conv.TILES, ids=str)
def test_convolutions(monkeypatch, tmp_path, tile, sm):
    """Every tile on the matrix units of its architecture, fed by copies of 16 bytes that run ahead."""
    x, weight, bias, past = conv_cases.case((2, 256, 128, 16, 16, 3), BF16)
    arguments = (x, weight, bias, past, torch.empty_like(past), tile)
    (launch,) = launches(monkeypatch, [conv], lambda: conv.conv2d(*arguments)).values()
    narrow = tile[0] * tile[1] < 32 * 32  # 4 outputs a thread
    most = 128 if (sm, tile) == (90, conv.TILES[0]) else 255  # two programs of eight warps on a multiprocessor
    assert check(conv._conv_kernel, launch, sm, tmp_path, vectors=not narrow) <= most
    ptx = compiled(conv._conv_kernel, launch, sm, tmp_path).asm["ptx"]
    units = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[sm if tile[0] >= 64 else 80]
    assert units in ptx
    assert re.search(r"cp\.async\.cg\.shared\.global[^;]*, 0x10", ptx)
    assert not re.search(r"cp\.async\.ca", ptx)


def test_the_largest_tile_that_fills_the_device_is_taken():
    sizes = {batch: conv.tile_for(batch * 1024, 256, 132)[:2] for batch in (1, 2, 3, 64)}
    assert sizes == {1: (64, 64), 2: (128, 64), 3: (128, 128), 64: (128, 128)}
    assert conv.tile_for(256, 256, 132)[:2] == (32, 32)
    assert conv.tile_for(64, 256, 132) == conv.TILES[-1]


def test_who_convolves(monkeypatch):
    """Ours where cuDNN's tiles leave multiprocessors idle; not float32, not other sizes, not three channels."""
    monkeypatch.setattr(triton_ops, "_processors", lambda device: 132)

    def ours(shape, dtype=BF16, padding=None):
        x, weight, _, _ = conv_cases.case(shape, dtype)
        return triton_ops.own_tile(x, weight, shape[-1] // 2 if padding is None else padding)

    assert ours((1, 256, 256, 32, 32, 3))[:2] == (64, 64)
    assert ours((8, 256, 256, 32, 32, 3)) == conv.TILES[0]
    assert ours((1, 256, 256, 8, 8, 1), F16) == conv.TILES[-1]
    assert ours((64, 32, 768, 16, 16, 1)) == conv.TILES[0]
    assert not ours((9, 32, 256, 32, 32, 3))
    assert not ours((1, 256, 256, 32, 32, 3), F32)
    assert not ours((1, 3, 128, 32, 32, 3))
    assert ours((1, 128, 3, 32, 32, 3)) == conv.TILES[-1]
    assert not ours((1, 128, 128, 8, 8, 5))
    assert not ours((1, 128, 128, 8, 8, 3), padding=2)


def test_how_the_launcher_chooses(made):
    """One read where that fills the device, two where it does not, where a slab is too large, or when resampling."""
    small, large = case((1, 128, 16, 16), BF16)[0], case((1, 128, 128, 128), BF16)[0]
    assert set(made(16, small, {})) == {"_slab_kernel"}
    assert set(made(132, small, {})) == {"_slab_kernel"}  # 16 programs of 4096 elements
    assert set(made(257, small, {})) == {"_sums_kernel", "_apply_kernel"}
    assert set(made(1, large, {})) == {"_sums_kernel", "_apply_kernel"}
    assert set(made(1, small, {"resample": resampling((1, 1), up=False)})) == {"_sums_kernel", "_apply_kernel"}


def test_every_kernel_of_the_package_is_compiled_somewhere():
    folder = Path(kernels.__file__).parent
    found = {
        name for path in folder.glob("*.py") for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.M)
    }
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_triton*_ptx.py"))
    assert len(found) == 8
    assert all(re.search(rf"\b{name}\b", tests) for name in found)
