"""Winograd's filtering in C++: against float64 by the yardstick of torch's convolution, and the bits it promises."""

import pytest
import torch
import torch.nn.functional as F

from engine import _native
from engine.networks import native_ops, winograd
from tests.conv_cases import case, check_against_torch

SHAPES = [  # batch, channels in, channels out, height, width, kernel
    (1, 16, 32, 4, 5, 3),
    (2, 64, 48, 16, 16, 3),
    (3, 32, 80, 7, 13, 3),
    (1, 144, 16, 6, 5, 3),
    (1, 256, 256, 8, 8, 3),
    (2, 128, 128, 24, 8, 3),
    (1, 256, 32, 16, 16, 3),
    (2, 3, 128, 16, 16, 3),
    (2, 128, 3, 16, 16, 3),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ISAS = _native.normal_isas()


def filtered(x, weight, bias, past, m, threads=2, isa="auto"):
    """Into memory full of NaN, so that nothing can be left from another call."""
    batch, inputs, height, width = x.shape
    out = torch.full((batch, len(weight), height, width), torch.nan, dtype=x.dtype)
    out = out.contiguous(memory_format=torch.channels_last)
    packed = winograd.pack(weight)
    inputs = packed.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, inputs - x.shape[1])).contiguous(memory_format=torch.channels_last)
    addresses = [0 if t is None else t.data_ptr() for t in (x, packed, bias, past, out)]
    sizes = (batch, height, width, inputs, len(weight))
    _native.run_cpu(_native.WinogradCall(addresses, native_ops._names()[0][x.dtype], sizes, m), threads, isa)
    return out


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_exact_as_torch(shape, dtype, m):
    """m = 4 in float32, where no rule chooses it, is held to what half precision rounds away."""
    arguments = case(shape, dtype)
    if m == 4 and dtype == torch.float32 and winograd.tile_for(*arguments[:2], 1) != 4:
        x, weight, bias, past = (t.double() for t in arguments)
        exact = F.conv2d(x, weight, bias, padding=1) + past
        assert (filtered(*arguments, m) - exact).abs().max() < 1e-5 * exact.abs().max()
    else:
        check_against_torch(lambda *tensors: filtered(*tensors, m), arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(*shape[:5], 1) for shape in SHAPES], ids=str)
def test_so_is_a_1x1_convolution(shape, dtype):
    check_against_torch(lambda *tensors: filtered(*tensors, 1), case(shape, dtype))


@pytest.mark.parametrize("without", ["bias", "past"])
def test_bias_and_sum_may_be_left_out(without):
    x, weight, bias, past = case(SHAPES[1], torch.float32)
    check_against_torch(
        lambda *tensors: filtered(*tensors, 2),
        (x, weight, None if without == "bias" else bias, None if without == "past" else past),
    )


def test_small_integers_come_out_exactly():
    """Every intermediate number has few bits then: any wrong coefficient shows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (2, 32, 9, 12), generator=generator).float().contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-4, 5, (48, 32, 3, 3), generator=generator).float()
    assert torch.equal(filtered(x, weight, None, None, 2), F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_on_neither_batch_threads_nor_vectors(dtype, m):
    x, weight, bias, past = case((5, 64, 80, 18, 11, 1 if m == 1 else 3), dtype)
    whole = filtered(x, weight, bias, past, m, threads=1)
    for b in range(len(x)):
        alone = filtered(x[b : b + 1], weight, bias, past[b : b + 1], m, threads=3)
        assert torch.equal(alone, whole[b : b + 1])
    for threads in (2, 7, 64):
        assert torch.equal(filtered(x, weight, bias, past, m, threads), whole)
    if {"avx2", "avx512"} <= {*ISAS}:
        assert torch.equal(filtered(x, weight, bias, past, m, isa="avx2"), whole)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_exact(isa):
    arguments = case((2, 48, 64, 10, 10, 3), torch.float32)
    check_against_torch(lambda *tensors: filtered(*tensors, 2, isa=isa), arguments)


def test_a_sample_that_is_not_finite_stays_alone():
    x, weight, bias, past = case(SHAPES[1], torch.float16)
    expected = filtered(x, weight, bias, past, 4)
    x[1, 3, 5, 5] = torch.inf
    got = filtered(x, weight, bias, past, 4)
    assert torch.equal(got[0], expected[0])
    assert not got[1].isfinite().all()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"m": 3}, "m must be 1, 2 or 4, got 3"),
        ({"shape": (1, 4, 4, 15, 16)}, "inputs must be a multiple of 16, got 15"),
        ({"shape": (1, 4, 4, 16, 0)}, "outputs must be positive, got 0"),
        ({"shape": (-1, 4, 4, 16, 16)}, "sizes must not be negative"),
        ({"threads": 0}, r"threads must be in \[1, 1024\], got 0"),
        ({"dtype": _native.Dtype.float64}, "x must be float32, float16 or bfloat16"),
        ({"isa": "mmx"}, 'got "mmx"'),
        ({"addresses": [0] * 5}, "x, weight and out must be there"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(changed, named):
    out = torch.full((1, 16, 4, 4), 7.0)
    addresses = [out.data_ptr(), out.data_ptr(), 0, 0, out.data_ptr()]
    call = {"addresses": addresses, "dtype": _native.Dtype.float32, "shape": (1, 4, 4, 16, 16), "m": 2} | changed
    how = {name: call.pop(name) for name in ("threads", "isa") if name in call}
    with pytest.raises(ValueError, match=named):
        _native.run_cpu(_native.WinogradCall(**call), **how)
    assert bool((out == 7).all())


@pytest.mark.parametrize(
    ("dtype", "size", "channels", "amx", "fast_halves", "of_3x3", "of_1x1"),
    [
        (torch.float32, 32, 64, False, False, 2, 1),
        (torch.float32, 32, 128, False, False, 4, 1),  # as exact as torch's from here on
        (torch.float32, 8, 16, True, True, 2, 1),
        (torch.float32, 8, 256, False, False, 2, 1),
        (torch.bfloat16, 8, 256, False, False, 4, 1),
        (torch.float32, 32, 24, False, False, None, None),
        (torch.bfloat16, 32, 128, False, False, 4, 1),
        (torch.bfloat16, 4, 64, False, False, 2, 1),
        (torch.bfloat16, 32, 128, False, True, 4, None),
        (torch.bfloat16, 8, 64, False, True, 4, 1),  # a small 1x1
        (torch.bfloat16, 32, 256, True, True, None, None),
        (torch.float16, 16, 64, True, True, 4, 1),
    ],
)
def test_the_rule_of_who_convolves(monkeypatch, dtype, size, channels, amx, fast_halves, of_3x3, of_1x1):
    monkeypatch.setattr(winograd, "has_amx", lambda: amx)
    monkeypatch.setattr(winograd, "_has_fast_halves", lambda: fast_halves)
    x = torch.empty(1, channels, size, size, dtype=dtype)
    assert winograd.tile_for(x, torch.empty(channels, channels, 3, 3), 1) == of_3x3
    assert winograd.tile_for(x, torch.empty(channels, channels, 1, 1), 0) == of_1x1
    assert winograd.tile_for(x, torch.empty(channels, channels, 3, 3), 2) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_numbers_of_channels_are_ours_where_onednn_does_not_know_the_dtype(monkeypatch, dtype):
    """Processors without AVX-512 have no bfloat16 in oneDNN, and torch's own convolution is slow."""
    monkeypatch.setattr(winograd, "has_amx", lambda: False)
    monkeypatch.setattr(winograd, "_has_fast_halves", lambda: False)
    monkeypatch.setattr(winograd, "onednn_knows", lambda dtype: dtype == torch.float32)
    x = torch.empty(1, 3, 32, 32, dtype=dtype)
    assert winograd.tile_for(x, torch.empty(128, 3, 3, 3), 1) == 4
    assert winograd.tile_for(x.float(), torch.empty(128, 3, 3, 3), 1) is None


def test_the_operation_takes_it_and_checks_its_tensors():
    x, weight, bias, past = case((2, 64, 48, 16, 16, 3), torch.float32)
    packed = {}
    got = native_ops.conv2d(x, weight, bias, 1, past, packed)
    assert torch.equal(got, filtered(x, weight, bias, past, 2))
    assert list(packed) == ["winograd"]
    with pytest.raises(ValueError, match=r"bias is torch\.float16; allowed: the dtype of x"):
        native_ops.conv2d(x, weight, bias.half(), 1, past, packed)
    with pytest.raises(ValueError, match=r"add is \[1, 48, 16, 16\]; allowed: \[2, 48, 16, 16\]"):
        native_ops.conv2d(x, weight, bias, 1, past[:1], packed)
    with pytest.raises(ValueError, match=r"bias is \[48\] with strides \[2\]; allowed: \[48\], contiguous"):
        native_ops.conv2d(x, weight, bias.repeat_interleave(2)[::2], 1, past, packed)
    with pytest.raises(ValueError, match=r"x is \[2, 32, 16, 16\]; allowed: \[B, 64, H, W\]"):
        native_ops.conv2d(x[:, :32].contiguous(memory_format=torch.channels_last), weight, bias, 1, past, packed)
