"""The networks' operations and the prepared networks on a CUDA device, by the yardstick of plain torch there."""

import copy

import pytest
import torch
from engine.kernels import conv

import engine
from engine.networks import ops, triton_ops
from engine.networks.ops import Resample
from engine.networks.precision import cast_network
from tests import conv_cases
from tests.cpu.test_prepared_network import KINDS, denoiser_of, inputs
from tests.group_norm_cases import case, check_against_torch, resampling

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("processors", [1, 10**6], ids=["slab", "split"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 128, 32, 32), (3, 256, 16, 16), (1, 192, 8, 8), (2, 24, 5, 7)], ids=str)
@pytest.mark.parametrize("given", [(), ("add", "keep"), ("scale_shift", "keep")], ids=str)
def test_group_norm(monkeypatch, processors, dtype, shape, given):
    monkeypatch.setattr(triton_ops, "_processors", lambda device: processors)
    arguments, each = case(shape, dtype)
    check_against_torch(triton_ops.group_norm, arguments, {name: each[name] for name in given}, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)], ids=str)
@pytest.mark.parametrize("shape", [(8, 128, 32, 32), (1, 192, 8, 8), (3, 64, 2, 2)], ids=str)
def test_group_norm_resampled(dtype, up, taps, shape):
    arguments, _ = case(shape, dtype)
    options = {"keep": 0.5**0.5, "resample": resampling(taps, up)}
    check_against_torch(triton_ops.group_norm, arguments, options, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("padding", [None, 0])
def test_resampling_alone(dtype, up, padding):
    """Whatever the caller's flags allow cuDNN: float32 is float32, and no measurement chooses the bits."""
    x = torch.randn(3, 16, 18, 12).contiguous(memory_format=torch.channels_last)
    how = resampling((1, 3, 3, 1), up)
    exact = ops.resample_by_two(x.to(dtype).double(), how, padding=padding)
    x, how = x.to("cuda", dtype), Resample(how.filter.to("cuda"), how.taps, up)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = ops.resample_by_two(x, how, padding=padding).cpu().double() - exact
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True, benchmark=True):
        error = triton_ops.resample(x, how, padding=padding).cpu().double() - exact
    assert error.square().mean() <= (1.5**2) * plain.square().mean()
    assert error.abs().max() <= 1.5 * plain.abs().max()


@pytest.mark.parametrize("tile", conv.TILES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*conv_cases.SHAPES, (1, 256, 256, 32, 32, 3), (2, 512, 256, 16, 16, 3)], ids=str)
def test_our_own_convolution(tile, dtype, shape):
    def tried(x, weight, bias, past):
        return triton_ops._convolve_whole(x, weight, bias, past, tile)

    x, weight, bias, past = conv_cases.case(shape, dtype)
    for arguments in ((x, weight, bias, past), (x, weight, None, None)):
        conv_cases.check_against_torch(tried, arguments, "cuda")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_prepared_networks(kind, dtype):
    denoiser = denoiser_of(kind)
    x, c_noise, labels = inputs(dtype)
    exact = copy.deepcopy(denoiser.model).double()(x.double(), c_noise.double(), labels.double())
    plain = cast_network(copy.deepcopy(denoiser.model).to("cuda"), dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = plain(*(t.to("cuda") for t in (x, c_noise, labels))).cpu().double() - exact
    prepared = engine.Engine(denoiser, dtype=dtype, device="cuda").denoiser.model
    assert {m.ops.name for m in prepared.modules() if hasattr(m, "ops")} == {"triton"}
    error = prepared(*(t.to("cuda") for t in (x, c_noise, labels))).cpu().double() - exact
    assert error.square().mean() <= (1.5**2) * plain.square().mean()
    assert error.abs().max() <= 1.5 * plain.abs().max()


@torch.no_grad()
def test_the_same_call_gives_the_same_bits():
    prepared = engine.Engine(denoiser_of("ddpmpp"), dtype=torch.bfloat16, device="cuda").denoiser.model
    arguments = [t.to("cuda") for t in inputs(torch.bfloat16)]
    first = prepared(*arguments)
    assert all(torch.equal(prepared(*arguments), first) for _ in range(5))
