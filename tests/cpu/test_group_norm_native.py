"""The C++ GroupNorm against float64, by the yardstick of plain torch in the same dtype, and its promises about bits."""

import pytest
import torch

import engine
from engine import _native
from engine.networks import native_ops, ops
from engine.networks.layers import GroupNorm
from tests.group_norm_cases import case, check_against_torch, resampling, wide_of
from tests.helpers import choose_isa, small_unet

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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", [(), ("add",), ("scale_shift",), ("add", "scale_shift", "keep")], ids=str)
def test_it_is_as_exact_as_torch(dtype, shape, given):
    arguments, each = case(shape, dtype)
    check_against_torch(native_ops.group_norm, arguments, {name: each[name] for name in given})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (3, 32, 6, 10), (1, 24, 2, 2)], ids=str)
@pytest.mark.parametrize("keep", [None, 1.0, 0.5**0.5])
@pytest.mark.parametrize("taps", [None, (1, 1), (1, 3, 3, 1), (1, 3, 5, 5, 3, 1)], ids=str)
@pytest.mark.parametrize("up", [True, False])
def test_tensors_side_by_side_resampled_and_kept(dtype, shape, keep, taps, up):
    """With the beside tensor as wide as half of x; groups lie across the seam."""
    (x, weight, bias, _, eps), each = case(shape, dtype)
    channels = shape[1] // 2 * 3
    weight, bias = (torch.cat([t, t[: shape[1] // 2] * 0.5]) for t in (weight, bias))
    options = {"beside": each["beside"]} | ({} if keep is None else {"keep": keep})
    if taps is not None:
        options["resample"] = resampling(taps, up)
    check_against_torch(native_ops.group_norm, (x, weight, bias, channels // 12, eps), options)
    if keep is None and taps is not None:
        alone, _ = native_ops.group_norm(x, *case(shape, dtype)[0][1:], silu=True, resample=options["resample"])
        expected, _ = ops.group_norm(x, *case(shape, dtype)[0][1:], silu=True, resample=options["resample"])
        assert (alone.float() - expected.float()).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_parameters_are_read_where_they_lie():
    """Columns of a wider product, as the gathered affine layers give them."""
    arguments, _ = case((3, 64, 4, 4), torch.float32)
    wide = torch.randn(3, 300)
    expected = native_ops.group_norm(*arguments, add=wide[:, 7:71].contiguous())[0]
    assert torch.equal(native_ops.group_norm(*arguments, add=wide[:, 7:71])[0], expected)
    scale_shift = (wide[:, 100:164], wide[:, 164:228])
    expected = native_ops.group_norm(*arguments, scale_shift=tuple(t.contiguous() for t in scale_shift))[0]
    assert torch.equal(native_ops.group_norm(*arguments, scale_shift=scale_shift)[0], expected)
    mixed = (scale_shift[0].contiguous(), scale_shift[1])
    assert torch.equal(native_ops.group_norm(*arguments, scale_shift=mixed)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_silu_it_is_group_norm(dtype):
    arguments, _ = case((2, 32, 9, 9), dtype)
    exact = ops.group_norm(*wide_of(arguments))[0]
    got, plain = native_ops.group_norm(*arguments)[0], ops.group_norm(*arguments)[0]
    assert (got - exact).abs().max() <= 1.5 * (plain - exact).abs().max()


def test_a_mean_far_from_zero_costs_no_accuracy():
    """The variance is not lost in the squares: they are summed in float64."""
    arguments, _ = case((1, 32, 16, 16), torch.float32, mean=300.0, spread=1.0)
    exact = ops.group_norm(*wide_of(arguments), silu=True)[0]
    error = (native_ops.group_norm(*arguments, silu=True)[0] - exact).abs().max()
    assert error <= 3 * (ops.group_norm(*arguments, silu=True)[0] - exact).abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_threads(dtype):
    (x, *rest), each = case((5, 64, 33, 31), dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = native_ops.group_norm(x, *rest, add=each["add"], silu=True)[0]
        torch.set_num_threads(3)
        assert torch.equal(native_ops.group_norm(x, *rest, add=each["add"], silu=True)[0], together)
    finally:
        torch.set_num_threads(before)
    for b in range(len(x)):
        alone = native_ops.group_norm(x[b : b + 1], *rest, add=each["add"][b : b + 1], silu=True)[0]
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("isa", _native.normal_isas())
def test_every_instruction_set(isa, monkeypatch):
    arguments, each = case((2, 48, 9, 9), torch.bfloat16)
    del each["beside"]
    expected = native_ops.group_norm(*arguments, **each, silu=True)[0]
    choose_isa(monkeypatch, isa)
    got = native_ops.group_norm(*arguments, **each, silu=True)[0]
    assert (got.float() - expected.float()).abs().max() <= 2**-7 * expected.abs().max()  # one rounding to bfloat16
    assert (got == expected).double().mean() > 0.99


@pytest.mark.parametrize("isa", _native.normal_isas())
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("factor", [0.75, 0.7071067690849304, 3e-5, 1e5])
def test_every_number_of_half_precision_is_read_and_rounded_as_torch_does(isa, dtype, factor, monkeypatch):
    choose_isa(monkeypatch, isa)
    x = torch.arange(65536).to(torch.uint16).view(dtype).reshape(1, 32, 32, 64).permute(0, 3, 1, 2)
    kept = native_ops.group_norm(x, torch.ones(64, dtype=dtype), torch.zeros(64, dtype=dtype), 16, 1e-5, keep=factor)[1]
    expected = (x.float() * factor).to(dtype)
    assert torch.equal(kept.isnan(), expected.isnan())
    assert torch.equal(kept.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_extremes():
    """Infinity, NaN and what overflows float16 stay what they are; a constant group has no spread to divide by."""
    weight, bias = torch.ones(8), torch.full([8], 0.5)
    x = torch.zeros(1, 8, 2, 2).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(native_ops.group_norm(x, weight, bias, 2, 1e-5)[0], torch.tensor(0.5))
    x[0, 0, 0, 0] = torch.nan
    got = native_ops.group_norm(x, weight, bias, 2, 1e-5, silu=True)[0]
    assert got[0, :4].isnan().all()
    assert got[0, 4:].isfinite().all()
    x = torch.full((1, 8, 2, 2), 1e4).contiguous(memory_format=torch.channels_last)
    x[0, :, 0] = -1e4
    big = native_ops.group_norm(x, weight * 200, bias, 2, 1e-5, silu=True)[0]
    assert torch.allclose(big, torch.nn.functional.silu(torch.sign(x) * 200 + 0.5))


def test_what_it_does_not_know_torch_computes():
    arguments, each = case((2, 32, 8, 8), torch.float32)
    x, *rest = arguments
    del each["beside"]
    for other in (x.contiguous(), x.clone().requires_grad_()):
        got = native_ops.group_norm(other, *rest, **each, silu=True)[0]
        assert torch.equal(got, ops.group_norm(other, *rest, **each, silu=True)[0])
    with pytest.raises(ValueError, match=r"weight is torch.float64; allowed: the dtype of x, torch.float32"):
        native_ops.group_norm(x, rest[0].double(), *rest[1:])


def test_an_engine_gives_its_own_copy_the_fast_operations():
    denoiser = small_unet()
    prepared = engine.Engine(denoiser).denoiser
    kinds = [{m.ops.name for m in d.model.modules() if isinstance(m, GroupNorm)} for d in (denoiser, prepared)]
    assert kinds == [{"torch"}, {"native"}]
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert (prepared(x, 1.0) - denoiser(x, 1.0)).abs().max() < 1e-5
