"""What test_triton_interpreter.py runs in a process of its own, where Triton's interpreter is on: the kernels of the
networks on CPU tensors, by the yardstick of plain torch in the same dtype."""

import pytest
import torch
from engine.kernels import conv
from engine.kernels import group_norm as kernel

from engine.networks import ops, triton_ops
from tests import conv_cases
from tests.group_norm_cases import case, check_against_torch, resampling

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPLIT = 10**6  # multiprocessors that no batch here fills


@pytest.fixture(params=[1, SPLIT], ids=["slab", "split"])
def group_norm(request, monkeypatch):
    monkeypatch.setattr(triton_ops, "_processors", lambda device: request.param)
    return triton_ops.group_norm


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 32, 8, 8), torch.bfloat16),
        ((1, 24, 5, 7), torch.float16),
        ((3, 16, 3, 3), torch.float32),
        ((1, 192, 4, 4), torch.bfloat16),
        ((1, 256, 2, 2), torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [("add", "keep"), ("scale_shift",), ("add", "scale_shift")], ids=str)
def test_it_is_as_exact_as_torch(group_norm, dtype, shape, given):
    arguments, each = case(shape, dtype)
    check_against_torch(group_norm, arguments, {name: each[name] for name in given})


@pytest.mark.parametrize(("shape", "keep"), [((2, 16, 4, 4), 0.5**0.5), ((1, 16, 2, 6), 1.0)], ids=str)
@pytest.mark.parametrize(
    ("taps", "dtype"),
    [(None, torch.bfloat16), ((1, 1), torch.bfloat16), ((1, 3, 3, 1), torch.float32), ((1, 3, 3, 1), torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("up", [True, False])
def test_tensors_side_by_side_resampled_and_kept(dtype, taps, up, shape, keep):
    (x, weight, bias, _, eps), each = case(shape, dtype)
    weight, bias = (torch.cat([t, t[: shape[1] // 2] * 0.5]) for t in (weight, bias))
    options = {"beside": each["beside"], "keep": keep}
    if taps is not None:
        options["resample"] = resampling(taps, up)
    check_against_torch(triton_ops.group_norm, (x, weight, bias, shape[1] // 2 * 3 // 12, eps), options)


def test_a_mean_far_from_zero_costs_no_accuracy(group_norm):
    arguments, _ = case((1, 16, 12, 12), torch.float32, mean=300.0, spread=1.0)
    check_against_torch(group_norm, arguments, {})


@pytest.mark.parametrize("processors", [1, 5, 20, SPLIT], ids=str)
@pytest.mark.parametrize("given", [(), ("add", "keep")], ids=str)
def test_chunks_of_any_number_of_tiles(monkeypatch, processors, given):
    """225 pixels are four tiles, the last of 33: one chunk of four, two of two, or four of one."""
    monkeypatch.setattr(triton_ops, "_processors", lambda device: processors)
    monkeypatch.setattr(kernel, "LARGEST_SLAB", 0)
    arguments, each = case((3, 16, 15, 15), torch.float32, mean=30.0, spread=1.0)
    check_against_torch(triton_ops.group_norm, arguments, {name: each[name] for name in given})


def test_tiles_of_a_chunk():
    assert [kernel._tiles(64, programs, 132) for programs in (1, 8, 33, 132, 264, 10**4)] == [1, 2, 8, 32, 64, 64]
    assert kernel._tiles(4, 3, 5) == 1
    assert kernel._tiles(1, 10, 132) == 1


def test_columns_of_a_wider_product_are_read_where_they_lie(group_norm):
    arguments, _ = case((3, 64, 4, 4), torch.float32)
    wide = torch.randn(3, 300)
    for name, columns in {"add": wide[:, 7:71], "scale_shift": (wide[:, 100:164], wide[:, 164:228])}.items():
        dense = columns.contiguous() if name == "add" else tuple(t.contiguous() for t in columns)
        expected, _ = group_norm(*arguments, **{name: dense})
        assert torch.equal(group_norm(*arguments, **{name: columns})[0], expected)


@pytest.mark.parametrize("tile", conv.TILES, ids=str)
@pytest.mark.parametrize("shape", conv_cases.SHAPES, ids=str)
def test_a_convolution_with_all_that_follows(tile, shape):
    """In float16: the interpreter multiplies the bit patterns of bfloat16. With and without bias and sum."""

    def tried(x, weight, bias, past):
        out = torch.full((len(x), len(weight), *x.shape[2:]), torch.nan, dtype=x.dtype)
        out = out.contiguous(memory_format=torch.channels_last)
        conv.conv2d(x, weight, bias, past, out, tile)
        return out

    x, weight, bias, past = conv_cases.case(shape, torch.float16)
    for arguments in ((x, weight, bias, past), (x, weight, None, None), (x, weight, None, past)):
        conv_cases.check_against_torch(tried, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_end_of_a_residual_block(dtype, bias):
    generator = torch.Generator().manual_seed(0)
    x, past, weight, b = (
        torch.randn(*size, generator=generator).to(dtype)
        for size in ((2, 12, 9, 9), (2, 20, 9, 9), (20, 12, 3, 3), (20,))
    )
    x, past = (t.contiguous(memory_format=torch.channels_last) for t in (x, past))
    b = b if bias else None
    exact = ops.conv2d(x.double(), weight.double(), None if b is None else b.double(), 1, past.double())
    alone = ops.conv2d(x, weight, None, 1)  # cuDNN's is rounded before torch adds its bias
    plain = ((alone if b is None else alone + b[:, None, None]) + past - exact).abs()
    error = (triton_ops.conv2d(x, weight, b, 1, past).double() - exact).abs()
    assert error.square().mean() <= 1.5**2 * plain.square().mean()
    assert error.max() <= 1.5 * plain.max()
    plain = ops.conv2d(x, weight, None, 1) + (0 if b is None else b[:, None, None])
    assert torch.equal(triton_ops.conv2d(x, weight, b, 1), plain)
