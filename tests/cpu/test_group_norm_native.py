"""The C++ GroupNorm against float64, by the yardstick of plain torch in the same dtype, and its promises about bits."""

import pytest
import torch

import engine
from engine import _native
from engine.networks import native_ops, ops
from engine.networks.layers import GroupNorm
from tests.helpers import small_unet

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES]
SHAPES = [
    (1, 32, 32, 32),
    (3, 16, 5, 7),
    (2, 96, 8, 8),
    (8, 128, 16, 16),
    (2, 256, 4, 4),
    (1, 20, 1, 1),
    (2, 640, 3, 3),
]


def case(shape, dtype, seed=0, spread=2.0, mean=0.3):
    generator = torch.Generator().manual_seed(seed)
    batch, channels = shape[:2]

    def normal(*size):
        return torch.randn(*size, generator=generator)

    x = (normal(*shape) * spread + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = (1 + 0.1 * normal(channels)).to(dtype), normal(channels).to(dtype)
    each = {"add": normal(batch, channels), "scale_shift": (normal(batch, channels) / 3, normal(batch, channels))}
    return (x, weight, bias, min(32, channels // 4), 1e-5), each


def doubled(value):
    return tuple(map(doubled, value)) if isinstance(value, tuple) else value.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", [(), ("add",), ("scale_shift",), ("add", "scale_shift")], ids=str)
def test_it_is_as_exact_as_torch(dtype, shape, given):
    arguments, each = case(shape, dtype)
    options = {name: each[name] for name in given}
    wide = [doubled(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    exact = ops.group_norm_silu(*wide, **{name: doubled(value) for name, value in options.items()})
    plain = (ops.group_norm_silu(*arguments, **options).double() - exact).abs()
    got = native_ops.group_norm_silu(*arguments, **options)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    error = (got.double() - exact).abs()
    least = torch.finfo(dtype).eps / 4 * exact.abs().max()  # a lucky torch, of a few elements, is no yardstick
    assert error.square().mean().sqrt() <= 1.5 * plain.square().mean().sqrt() + least
    assert error.max() <= 1.5 * plain.max() + least


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_silu_it_is_group_norm(dtype):
    arguments, _ = case((2, 32, 9, 9), dtype)
    exact = ops.group_norm(*[a.double() if isinstance(a, torch.Tensor) else a for a in arguments])
    got, plain = native_ops.group_norm(*arguments), ops.group_norm(*arguments)
    assert (got - exact).abs().max() <= 1.5 * (plain - exact).abs().max()


def test_a_mean_far_from_zero_costs_no_accuracy():
    """The variance is not lost in the squares: they are summed in float64."""
    arguments, _ = case((1, 32, 16, 16), torch.float32, mean=300.0, spread=1.0)
    exact = ops.group_norm_silu(*[a.double() if isinstance(a, torch.Tensor) else a for a in arguments])
    error = (native_ops.group_norm_silu(*arguments) - exact).abs().max()
    assert error <= 3 * (ops.group_norm_silu(*arguments) - exact).abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_threads(dtype):
    (x, *rest), each = case((5, 64, 33, 31), dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = native_ops.group_norm_silu(x, *rest, add=each["add"])
        torch.set_num_threads(3)
        assert torch.equal(native_ops.group_norm_silu(x, *rest, add=each["add"]), together)
    finally:
        torch.set_num_threads(before)
    for b in range(len(x)):
        alone = native_ops.group_norm_silu(x[b : b + 1], *rest, add=each["add"][b : b + 1])
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("isa", _native.normal_isas())
def test_every_instruction_set(isa, monkeypatch):
    arguments, each = case((2, 48, 9, 9), torch.bfloat16)
    expected = native_ops.group_norm_silu(*arguments, **each)
    plain = _native.group_norm_cpu
    monkeypatch.setattr(_native, "group_norm_cpu", lambda *a, **k: plain(*a, **k, isa=isa))
    got = native_ops.group_norm_silu(*arguments, **each)
    assert (got.float() - expected.float()).abs().max() <= 2**-7 * expected.abs().max()  # one rounding to bfloat16
    assert (got == expected).double().mean() > 0.99


def test_extremes():
    """Infinity, NaN and what overflows float16 stay what they are; a constant group has no spread to divide by."""
    weight, bias = torch.ones(8), torch.full([8], 0.5)
    x = torch.zeros(1, 8, 2, 2).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(native_ops.group_norm(x, weight, bias, 2, 1e-5), torch.tensor(0.5))
    x[0, 0, 0, 0] = torch.nan
    got = native_ops.group_norm_silu(x, weight, bias, 2, 1e-5)
    assert got[0, :4].isnan().all()
    assert got[0, 4:].isfinite().all()
    x = torch.full((1, 8, 2, 2), 1e4).contiguous(memory_format=torch.channels_last)
    x[0, :, 0] = -1e4
    big = native_ops.group_norm_silu(x, weight * 200, bias, 2, 1e-5)
    assert torch.allclose(big, torch.nn.functional.silu(torch.sign(x) * 200 + 0.5))


def test_what_it_does_not_know_torch_computes():
    arguments, each = case((2, 32, 8, 8), torch.float32)
    x, *rest = arguments
    for other in (x.contiguous(), x.clone().requires_grad_()):
        got = native_ops.group_norm_silu(other, *rest, **each)
        assert torch.equal(got, ops.group_norm_silu(other, *rest, **each))
    with pytest.raises(ValueError, match=r"weight is torch.float64, .*; allowed: the dtype of x, torch.float32"):
        native_ops.group_norm(x, rest[0].double(), *rest[1:])


def test_an_engine_gives_its_own_copy_the_fast_operations():
    denoiser = small_unet()
    prepared = engine.Engine(denoiser).denoiser
    kinds = [{m.ops.name for m in d.model.modules() if isinstance(m, GroupNorm)} for d in (denoiser, prepared)]
    assert kinds == [{"torch"}, {"native"}]
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert (prepared(x, 1.0) - denoiser(x, 1.0)).abs().max() < 1e-5
