"""Attention in C++ against float64, by the yardstick of torch's in the same dtype, and its promises about bits."""

import pytest
import torch

import engine
from engine import _native
from engine.networks import native_ops, ops, winograd
from tests.helpers import choose_isa, small_unet

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [  # batch, heads, length, channels
    (1, 1, 256, 256),
    (2, 6, 128, 64),
    (3, 2, 97, 40),
    (1, 3, 50, 20),
    (16, 8, 33, 7),
    (16, 2, 1, 3),
    (1, 1, 1030, 16),
]


def case(shape, dtype, seed=0, spread=1.0):
    """As a block's qkv convolution leaves them."""
    batch, heads, length, channels = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, length, 3, heads, channels, generator=generator) * spread
    return qkv.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)


def check_against_torch(qkv, got):
    exact = ops.attention(*(t.double() for t in qkv))
    error, allowed = (got - exact).abs(), (ops.attention(*qkv) - exact).abs()
    least = torch.finfo(qkv[0].dtype).eps * exact.abs().max() / 2  # a lucky torch is no yardstick
    assert error.max() <= 1.5 * allowed.max() + least
    assert error.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt() + least / 4


@pytest.fixture(params=_native.normal_isas())
def isa(request, monkeypatch):
    choose_isa(monkeypatch, request.param)
    monkeypatch.setattr(winograd, "has_amx", lambda: False)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_exact_as_torch(isa, shape, dtype):
    qkv = case(shape, dtype)
    check_against_torch(qkv, native_ops.attention(*qkv))


@pytest.mark.parametrize("spread", [1e-3, 30.0, 1000.0])
def test_scores_of_every_size(isa, spread):
    """Where one score outdoes the others by hundreds, its value alone is left, as by torch."""
    qkv = case((2, 2, 70, 24), torch.float32, spread=spread)
    check_against_torch(qkv, native_ops.attention(*qkv))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_threads_nor_on_width(dtype, monkeypatch):
    monkeypatch.setattr(winograd, "has_amx", lambda: False)
    qkv = case((5, 3, 120, 32), dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = native_ops.attention(*qkv)
        torch.set_num_threads(4)
        assert torch.equal(native_ops.attention(*qkv), together)
        for b in range(5):
            assert torch.equal(native_ops.attention(*(t[b : b + 1] for t in qkv)), together[b : b + 1])
    finally:
        torch.set_num_threads(before)
    if {"avx2", "avx512"} <= set(_native.normal_isas()):
        choose_isa(monkeypatch, "avx2")
        assert torch.equal(native_ops.attention(*qkv), together)


@pytest.mark.parametrize("length", [257, 700])
def test_bits_of_one_head_do_not_depend_on_how_its_queries_are_shared_out(isa, length):
    """Between threads, within blocks of queries that end elsewhere."""
    qkv = case((1, 1, length, 64), torch.float32)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            made.append(native_ops.attention(*qkv))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, made[0]) for each in made)


def test_not_finite_is_not_finite(isa):
    """In the queries that see it, and in no other sample or head."""
    for bad in (torch.nan, torch.inf):
        q, k, v = (t.clone() for t in case((2, 2, 40, 16), torch.float32))
        q[0, 0, 5, 3], k[1, 0, 7, 2], v[1, 1, 9, 1] = bad, torch.nan, bad
        got = native_ops.attention(q, k, v)
        assert got[0, 0, 5].isnan().all()
        assert got[0, 0, :5].isfinite().all()
        assert got[0, 1].isfinite().all()
        assert got[1, 0].isnan().all()
        assert not got[1, 1, :, 1].isfinite().any()
        assert got[1, 1, :, 2:].isfinite().all()


def test_the_result_lies_as_the_next_convolution_reads_it():
    got = native_ops.attention(*case((2, 4, 64, 8), torch.float32))
    image = got.transpose(2, 3).reshape(2, 32, 8, 8)
    assert image.data_ptr() == got.data_ptr()
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_what_it_does_not_know_torch_computes(monkeypatch):
    monkeypatch.setattr(_native, "run_cpu", None)
    q, k, v = case((2, 2, 16, 8), torch.float32)
    spread = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)]
    fewer = [q, k[:, :, :7], v[:, :, :7]]
    others = (
        [t.double() for t in (q, k, v)],
        spread,
        [q, k.contiguous(), v],
        [t[:, :, :0] for t in (q, k, v)],
        fewer,
    )
    for other in (*others, [q.clone().requires_grad_(), k, v]):
        assert torch.equal(native_ops.attention(*other), ops.attention(*other))
    with monkeypatch.context() as patch:
        patch.setattr(native_ops, "_KEYS", 16 * 8 - 1)
        assert torch.equal(native_ops.attention(q, k, v), ops.attention(q, k, v))
    monkeypatch.setattr(winograd, "has_amx", lambda: True)
    halves = [t.bfloat16() for t in (q, k, v)]
    assert torch.equal(native_ops.attention(*halves), ops.attention(*halves))


def test_errors():
    dtype = _native.Dtype.float32
    for shape, message in (((1, 1, 1, 0), "channels must be positive"), ((1, 1, 1, 1), "must be there")):
        with pytest.raises(ValueError, match=f"attention: .*{message}"):
            _native.run_cpu(_native.AttentionCall([0] * 4, dtype, shape, (1, 1, 1), (1, 1, 1)))
    with pytest.raises(ValueError, match="attention: threads must be in"):
        _native.run_cpu(_native.AttentionCall([0] * 4, dtype, (1, 1, 1, 1), (1, 1, 1), (1, 1, 1)), 0)
    with pytest.raises(ValueError, match="attention: q must be float32, float16 or bfloat16"):
        _native.run_cpu(_native.AttentionCall([1] * 4, _native.Dtype.float64, (1, 1, 1, 1), (1, 1, 1), (1, 1, 1)))


def test_prepared_networks_use_it(monkeypatch):
    calls = []
    plain = _native.AttentionCall
    monkeypatch.setattr(_native, "AttentionCall", lambda *a: calls.append(a[2]) or plain(*a))
    denoiser = small_unet()
    prepared = engine.Engine(denoiser).denoiser
    blocks = sum(getattr(module, "num_heads", 0) > 0 for module in denoiser.modules())
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert (prepared(x, 1.0) - denoiser(x, 1.0)).abs().max() < 1e-5
    assert len(calls) == blocks > 0
