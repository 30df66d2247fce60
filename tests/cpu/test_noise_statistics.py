"""A hundred million normals: moments, tails and distribution against the exact probabilities.

Every bound is five standard errors of the estimate, so a correct generator fails about once in a million runs of one
bound; the seeds are fixed, so it either always passes or never does.
"""

import math

import numpy as np
import pytest

from engine import noise

N = 10**8
CHUNK = 10**6
EDGES = np.linspace(-6, 6, 241)


def upper_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.fixture(scope="module")
def totals():
    """Sums of powers, counts beyond thresholds and a histogram, over N draws of 100 seeds."""
    powers, beyond = np.zeros(4), {4: 0, 5: 0}
    counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
    for seed in range(N // CHUNK):
        z = noise.normal([seed * 7919], seed % 3, (CHUNK,), backend="cpu")[0].double()
        square = z * z
        powers += [z.sum(), square.sum(), (square * z).sum(), (square * square).sum()]
        for threshold in beyond:
            beyond[threshold] += int((z.abs() > threshold).sum())
        counts += np.histogram(z.numpy(), EDGES)[0]
    return powers / N, beyond, counts


def test_moments(totals):
    mean, variance, skew, kurtosis = totals[0]
    # standard errors of the first four raw moments of a normal: sqrt(E z^2k - (E z^k)^2) / sqrt(N)
    for value, exact, spread in [(mean, 0, 1), (variance, 1, 2), (skew, 0, 15), (kurtosis, 3, 96)]:
        assert abs(value - exact) < 5 * math.sqrt(spread / N)


@pytest.mark.parametrize("threshold", [4, 5])
def test_tails(totals, threshold):
    expected = 2 * upper_tail(threshold) * N
    assert abs(totals[1][threshold] - expected) < 5 * math.sqrt(expected)


def test_distribution(totals):
    cdf = np.array([1 - upper_tail(edge) for edge in EDGES])
    empirical = (np.cumsum(totals[2]) + (N - totals[2].sum()) / 2) / N
    # the Kolmogorov-Smirnov distance is above 1.95 / sqrt(N) once in a thousand runs; here only at the edges
    assert np.abs(empirical - cdf[1:]).max() < 1.95 / math.sqrt(N)
