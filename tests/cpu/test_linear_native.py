"""The C++ linear layer against float64, by the yardstick of torch's in float32, and its promise about bits."""

import pytest
import torch

from engine import _native
from engine.networks import native_ops, ops
from tests.helpers import choose_isa

SIZES = [(1, 1, 1), (2, 9, 32), (3, 17, 5), (7, 128, 130), (33, 512, 260), (4, 0, 3)]


def case(rows, inputs, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias, add = (
        torch.randn(*size, generator=generator)
        for size in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    return x, weight, bias, add


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("isa", _native.normal_isas())
@pytest.mark.parametrize("silu", [False, True])
def test_it_is_as_exact_as_torch(size, isa, silu, monkeypatch):
    choose_isa(monkeypatch, isa)
    x, weight, bias, add = case(*size)
    for b, a in ((bias, None), (None, add), (bias, add)):
        wide = [t if t is None else t.double() for t in (x, weight, b, a)]
        exact = ops.linear(*wide[:3], add=wide[3], silu=silu)
        error = (native_ops.linear(x, weight, b, add=a, silu=silu) - exact).abs()
        allowed = (ops.linear(x, weight, b, add=a, silu=silu) - exact).abs()
        least = 2 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert error.max() <= 1.5 * allowed.max() + least
        assert error.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt() + least


@pytest.mark.parametrize("isa", _native.normal_isas())
def test_silu_within_a_few_ulp(isa, monkeypatch):
    """Of y / (1 + e^-y), wherever that is not below 1e-25."""
    choose_isa(monkeypatch, isa)
    y = torch.cat(
        [torch.linspace(-58, 100, 200_000), torch.logspace(-30, 38, 20_000), torch.logspace(-30, 1.7, 20_000).neg()]
    )
    got = native_ops.linear(torch.ones(1, 1), y[:, None].contiguous(), None, silu=True)[0]
    exact = y.double() * torch.sigmoid(y.double())
    ulp = exact.abs().frexp().exponent.sub(24).double().exp2()
    assert ((got - exact) / ulp).abs().max() < 6
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan, -1e30])
    got = native_ops.linear(torch.ones(1, 1), ends[:, None].contiguous(), None, silu=True)[0]
    assert got[0] == torch.inf
    assert got[2].isnan()
    assert got[3].abs() < 1e-7


def test_bits_depend_neither_on_the_other_rows_nor_on_threads():
    x, weight, bias, add = case(70, 200, 1031)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = native_ops.linear(x, weight, bias, add=add, silu=True)
        torch.set_num_threads(1)
        for rows in (1, 2, 3, 4, 5, 16, 70):
            assert torch.equal(native_ops.linear(x[:rows], weight, bias, add=add[:rows], silu=True), together[:rows])
        for row in range(70):
            one = slice(row, row + 1)
            assert torch.equal(native_ops.linear(x[one], weight, bias, add=add[one], silu=True), together[one])
    finally:
        torch.set_num_threads(before)


def test_what_it_does_not_know_torch_computes():
    x, weight, bias, add = case(3, 8, 5)
    for other in (x.double(), x.t().contiguous().t()):
        kind = other.dtype
        got = native_ops.linear(other, weight.to(kind), bias.to(kind), add=add.to(kind))
        assert torch.equal(got, ops.linear(other, weight.to(kind), bias.to(kind), add=add.to(kind)))
    weight.requires_grad_()
    native_ops.linear(x, weight, bias).sum().backward()
    assert torch.equal(weight.grad, x.sum(0).expand(5, 8))


def test_errors():
    with pytest.raises(ValueError, match="linear: x and weight must be there"):
        _native.run_cpu(_native.LinearCall([0] * 5, (1, 1, 1), False))
    with pytest.raises(ValueError, match="linear: threads must be in"):
        _native.run_cpu(_native.LinearCall([0] * 5, (0, 1, 1), False), 0)
    x, weight, bias, add = case(3, 8, 5)
    for bad_x, bad_add in ((x[:, :7].contiguous(), add), (x, add[:2]), (x[0], None)):
        with pytest.raises(ValueError, match=r"x is \[.*, add .*; allowed: \[B, 8\], and None or \[B, 5\]"):
            native_ops.linear(bad_x, weight, bias, add=bad_add)


def test_the_default_dtype_of_torch_is_not_asked():
    x, weight, bias, _ = case(3, 8, 5)
    expected = native_ops.linear(x, weight, bias)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(native_ops.linear(x, weight, bias), expected)
    finally:
        torch.set_default_dtype(torch.float32)
