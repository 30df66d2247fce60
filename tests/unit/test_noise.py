"""The reference of the noise: Philox vectors, NumPy == torch, accuracy, distribution, errors.

Statistical tests use fixed seeds, so they are deterministic; the thresholds say how improbable a
sound generator's value would be (five standard deviations, 6e-7, unless stated).
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.noise import box_muller_ref, cos_sin_ref, log_ref, normal, normal_ref, philox_ref, sqrt_ref
from engine.verify.normals import PHILOX_KNOWN

MODULES = pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
SHAPES = [(1,), (3,), (1, 32, 32), (3, 7, 5), ()]


def words_of(values, xp):
    return tuple(xp.asarray([v], dtype=xp.int64) for v in values)


@MODULES
@pytest.mark.parametrize(("words", "expected"), PHILOX_KNOWN)
def test_philox_known_answers(xp, words, expected):
    found = philox_ref(words_of(words[:2], xp), words_of(words[2:], xp), xp)
    assert tuple(int(w[0]) for w in found) == expected


@MODULES
def test_layout_of_words_and_elements(xp):
    """Words r0..r3 of counter (lo q, hi q, lo draw, hi draw) make elements 4q..4q+3."""
    seed, draw = 0x9E3779B97F4A7C15, (5 << 32) + 7
    r = philox_ref(words_of((0x7F4A7C15, 0x9E3779B9), xp), words_of((3, 0, 7, 5), xp), xp)
    expected = [float(z[0]) for pair in (r[:2], r[2:]) for z in box_muller_ref(*pair, xp)]
    assert normal_ref([seed], draw, (16,), xp=xp)[0, 12:].tolist() == expected


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.integers(0, 2**63 - 1),
    st.sampled_from(SHAPES),
)
def test_numpy_equals_torch(seeds, draw, shape):
    a = normal_ref(seeds, draw, shape, xp=np)
    b = normal_ref(seeds, draw, shape, xp=torch)
    assert (a.dtype, b.dtype) == (np.float32, torch.float32)
    assert a.shape == tuple(b.shape) == (len(seeds), *shape)
    assert a.tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_depend_on_its_batch(shape):
    seeds, draws = [7, 2**64 - 1, 7, 2**63, 0], [0, 1, 2, 2**62, 0]
    batch = normal(seeds, draws, shape, backend="reference")
    for i, (seed, draw) in enumerate(zip(seeds, draws, strict=True)):
        assert torch.equal(batch[i : i + 1], normal([seed], draw, shape, backend="reference"))
    assert batch.is_contiguous()


def test_seed_containers_agree():
    expected = normal(range(3), 4, (5,), backend="reference")
    tensors = [torch.arange(3), torch.arange(3, dtype=torch.uint8), torch.arange(3).to(torch.uint64)]
    for seeds in [(0, 1, 2), np.arange(3), *tensors]:
        assert torch.equal(expected, normal(seeds, 4, (5,), backend="reference"))
    assert torch.equal(expected, normal([0, 1, 2], torch.tensor(4), (5,), backend="reference"))
    assert torch.equal(expected, normal([0, 1, 2], torch.tensor([4, 4, 4]), (5,), backend="reference"))
    assert normal([], 0, (3, 2)).shape == (0, 3, 2)
    assert normal([1, 2], 0, (0, 2)).shape == (2, 0, 2)


# Accuracy
LOG_ULP, COS_ULP, SIN_ULP = 0.8420, 0.8940, 0.8970


def ulps(value, truth):
    """Error of float32 `value` in units of the last place of float64 `truth`."""
    spacing = np.ldexp(1.0, np.frexp(truth)[1] - 24)
    return np.abs(value.astype(np.float64) - truth) / spacing


def all_words(chunk=1 << 20):
    """Every uint32 that gives another float32 (all below 2**24, then every 2**k-th)."""
    starts = [(0, 1)] + [(1 << b, 1 << (b - 23)) for b in range(24, 32)]
    for start, stride in starts:
        stop = 1 << 24 if start == 0 else 2 * start
        for first in range(start, stop, stride * chunk):
            yield np.arange(first, min(first + stride * chunk, stop), stride, dtype=np.int64)


def log_errors():
    for words in all_words():
        u = words.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
        u = u[u < 1]  # log 1 = 0 has no last place; test_extreme_words checks it
        if u.size:
            yield ulps(log_ref(u, np), np.log(u.astype(np.float64))).max()


def cos_sin_errors():
    for words in all_words():
        t = words[words < 2**31].astype(np.float32) * np.float32(2**-31)
        if t.size:
            cos, sin = cos_sin_ref(t)
            angle = (math.pi / 4) * t.astype(np.float64)
            yield ulps(cos, np.cos(angle)).max(), ulps(sin, np.sin(angle)).max()


def test_accuracy_exhaustive():
    """Every argument that can occur (cos is even and sin odd to the bit, so t >= 0 suffices).

    From both sides: the stated bounds hold, and they are not slack.
    """
    assert LOG_ULP - 1e-3 < max(log_errors()) <= LOG_ULP
    cos, sin = np.max(list(cos_sin_errors()), axis=0)
    assert COS_ULP - 1e-3 < cos <= COS_ULP
    assert SIN_ULP - 1e-3 < sin <= SIN_ULP


def test_float64_is_a_fit_yardstick():
    """The float64 functions above are within 1e-7 float32 ulp of mpmath where it matters."""
    rng = np.random.default_rng(0)
    u = rng.integers(1, 2**32, 300) * 2.0**-32
    with mpmath.workdps(30):
        for x in u.astype(np.float32).astype(np.float64):
            if x < 1:
                assert abs(mpmath.log(x) - np.log(x)) < 1e-7 * 2**-24 * abs(mpmath.log(x))
            angle = (math.pi / 4) * x
            assert abs(mpmath.cos(mpmath.pi / 4 * x) - np.cos(angle)) < 1e-7 * 2**-24
            assert abs(mpmath.sin(mpmath.pi / 4 * x) - np.sin(angle)) < 1e-7 * 2**-24 * x


@MODULES
def test_sqrt_is_correctly_rounded(xp):
    """Against integer arithmetic at random, and against the processor's sqrt on many more."""
    x = np.random.default_rng(2).uniform(0, 46, 1_000_000).astype(np.float32)
    x[:3] = 0.0, -0.0, 4.0
    root = np.asarray(sqrt_ref(xp.asarray(x), xp))
    assert root.tobytes() == np.sqrt(x).tobytes()
    for value, r in zip(x[3:2003].tolist(), root[3:2003].tolist(), strict=True):
        mantissa, exponent = math.frexp(r)
        m, scale = int(mantissa * 2**24), 2 * (exponent - 24)
        target = int(math.ldexp(value, 60)) * 4  # x 2^62, exact for these sizes
        low, high = ((2 * m + side) ** 2 * 2 ** (scale + 60) for side in (-1, 1))
        assert low < target < high


def test_cos_even_sin_odd_to_the_bit():
    t = np.arange(0, 2**31, 9973, dtype=np.int64).astype(np.float32) * np.float32(2**-31)
    (cos, sin), (cos_m, sin_m) = cos_sin_ref(t), cos_sin_ref(-t)
    assert cos.tobytes() == cos_m.tobytes()
    assert sin.tobytes() == (-sin_m).tobytes()


@MODULES
def test_extreme_words(xp):
    """Corner words of radius and angle: finite, the stated limit, log(1) = 0, exact quarter turns."""
    edge = [0, 1, 2**24 - 1, 2**24, 2**29, 2**30, 2**31 - 1, 2**31, 3 << 30, 2**32 - 129, 2**32 - 1]
    ra, rb = (xp.asarray(w.ravel(), dtype=xp.int64) for w in np.meshgrid(edge, edge))
    x, y = (np.asarray(z) for z in box_muller_ref(ra, rb, xp))
    assert np.isfinite([x, y]).all()
    limit = np.float32(math.sqrt(2 * 33 * math.log(2)))
    assert max(np.abs(x).max(), np.abs(y).max()) == pytest.approx(limit, rel=2e-7)
    top = np.asarray(ra) == 2**32 - 1
    assert not np.any([x[top], y[top]])
    for angle, (sx, sy) in zip([0, 1 << 30, 2 << 30, 3 << 30], [(1, 0), (0, 1), (-1, 0), (0, -1)], strict=True):
        at = (np.asarray(ra) == 0) & (np.asarray(rb) == angle)
        assert (np.sign(x[at]) == sx).all()
        assert (np.sign(y[at]) == sy).all()


def test_against_box_muller_in_float64():
    """The whole transform, not its parts: 2e6 normals within 4 ulp of the largest (6.76) of float64."""
    rng = np.random.default_rng(1)
    ra, rb = rng.integers(0, 2**32, (2, 1_000_000), dtype=np.int64)
    u = ra.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33
    u = u.astype(np.float32).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * math.pi * rb * 2.0**-32
    x, y = box_muller_ref(ra, rb, np)
    assert np.abs(x - radius * np.cos(angle)).max() < 4 * 2**-21
    assert np.abs(y - radius * np.sin(angle)).max() < 4 * 2**-21


# Distribution


@pytest.fixture(scope="module")
def z():
    """2^22 normals: 1024 seeds of every size times 4096 elements."""
    seeds = [(i * 0x9E3779B97F4A7C15 + i) % 2**64 if i % 2 else i for i in range(1024)]
    return normal_ref(seeds, 0, (4096,), xp=torch).double()


def test_moments(z):
    n = z.numel()
    mean, centred = z.mean(), z - z.mean()
    var = centred.square().mean()
    skew = centred.pow(3).mean() / var**1.5
    kurtosis = centred.pow(4).mean() / var**2 - 3
    for value, variance in [(mean, 1), (var - 1, 2), (skew, 6), (kurtosis, 24)]:
        assert abs(value) < 5 * math.sqrt(variance / n)


def test_kolmogorov_smirnov(z):
    """P(sqrt(n) D > 2.69) = 2 exp(-2 * 2.69^2) = 1e-6; also each half of a Box-Muller pair alone."""
    for part in (z, z[:, 0::2], z[:, 1::2]):
        cdf = torch.special.ndtr(part.flatten().sort().values)
        n = len(cdf)
        grid = torch.arange(n, dtype=torch.float64) / n
        d = torch.maximum((cdf - grid).max(), (grid + 1 / n - cdf).max())
        assert d * math.sqrt(n) < 2.69


@pytest.mark.parametrize("threshold", [1.0, 2.0, 3.0, 4.0, 4.5])
def test_tails(z, threshold):
    """Counts beyond a threshold on either side against the binomial, five deviations."""
    p = 0.5 * math.erfc(threshold / math.sqrt(2))
    for count in ((z > threshold).sum(), (z < -threshold).sum()):
        assert abs(count.item() - p * z.numel()) < 5 * math.sqrt(p * z.numel())


def correlation(a, b):
    return abs((a * b).mean().item()) * math.sqrt(a.numel())


def test_independence(z):
    """Products and products of squares of neighbours: in element, pair, counter, seed, draw, word."""
    later = normal_ref([2 * i for i in range(512)], 1, (4096,), xp=torch).double()
    same = z[0::2]  # seeds 0, 2, 4, ... are themselves, draw 0
    high = normal_ref([(2 * i) << 32 for i in range(512)], 0, (4096,), xp=torch).double()
    draw_high = normal_ref([2 * i for i in range(512)], 1 << 32, (4096,), xp=torch).double()
    pairs = [(z[:, :-k], z[:, k:]) for k in (1, 2, 3, 4, 5, 8, 64)]
    pairs += [(z[:-k], z[k:]) for k in (1, 2, 3)]
    pairs += [(same, later), (same[1:], high[1:]), (same, draw_high)]
    for a, b in pairs:
        assert correlation(a, b) < 5
        assert correlation(a.square() - 1, b.square() - 1) < 5 * 2  # var(z^2) = 2, so the product's is 4


def test_every_seed_alone_is_normal(z):
    """Sums of squares of each seed are chi-square(4096): no seed is odd, and they vary as they should."""
    score = (z.square().sum(1) - 4096) / math.sqrt(2 * 4096)
    assert score.abs().max() < 5.6  # 1024 of them: P = 2e-5 by the normal limit
    assert abs(score.var().item() - 1) < 5 * math.sqrt(2 / 1024)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, -1], 0, (2,)), r"^seeds\[1\] is -1; allowed: an integer in \[0, 2\*\*64\)$"),
        (([2**64], 0, (2,)), r"^seeds\[0\] is 18446744073709551616; allowed: an integer"),
        (([True], 0, (2,)), r"^seeds\[0\] is True; allowed: an integer"),
        ((5, 0, (2,)), r"^seeds is 5; allowed: a sequence of integers in \[0, 2\*\*64\)$"),
        ((torch.zeros(1), 0, (2,)), r"^seeds\[0\] is 0\.0; allowed: an integer"),
        ((torch.zeros(1, 2, dtype=torch.int64), 0, (2,)), r"^seeds has shape \[1, 2\]; allowed: a 1-D tensor$"),
        (([0], -1, (2,)), r"^draw is -1; allowed: an integer in \[0, 2\*\*63\)$"),
        (([0], 2**63, (2,)), r"^draw is 9223372036854775808; allowed: an integer"),
        (([0], [1, 2], (2,)), r"^draw has 2 entries; allowed: one integer, or one per seed \(1\)$"),
        (([0], [1.5], (2,)), r"^draw\[0\] is 1\.5; allowed: an integer"),
        (([0], 0, (2, -3)), r"^shape\[1\] is -3; allowed: an integer"),
        (([0], 0, 2), r"^shape is 2; allowed: a sequence of integers"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_arguments(arguments, message, backend):
    with pytest.raises(ValueError, match=message):
        normal(*arguments, backend=backend)


def test_bad_backend():
    with pytest.raises(ValueError, match=r"^backend is 'gpu'; allowed: 'auto', .*'reference'$"):
        normal([0], 0, (2,), backend="gpu")
    with pytest.raises(
        ValueError, match=r"^backend is 'cpu' with device 'meta'; allowed: 'auto' or 'reference', or a CPU device$"
    ):
        normal([0], 0, (2,), backend="cpu", device="meta")


def test_backends_without_the_extension(monkeypatch):
    monkeypatch.setattr("engine.noise._native_built", lambda: False)
    assert torch.equal(normal([1], 2, (3,)), normal([1], 2, (3,), backend="reference"))
    with pytest.raises(RuntimeError, match=r"^backend='cpu' cannot run: engine\._native is not built"):
        normal([1], 2, (3,), backend="cpu")
