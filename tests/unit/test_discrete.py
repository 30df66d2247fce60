"""Discrete-time schedules against the printed tables of Lin et al. 2024 (Tables 1 and 2)."""

import pytest
import torch

from engine import discrete


@pytest.mark.parametrize(
    ("schedule", "ratio", "signal"),
    [
        ("linear", "4.035993e-05", "0.006353"),
        ("cosine", "2.428735e-09", "4.928220e-05"),
        ("scaled-linear", "0.004682", "0.068265"),
    ],
)
def test_table_1_to_its_printed_digits(schedule, ratio, signal):
    bar = discrete.alpha_bar(discrete.betas(schedule))[-1]

    def like(text, value):
        digits = len(text.partition("e")[0].partition(".")[2])
        return f"{value:.{digits}e}" if "e" in text else f"{value:.{digits}f}"

    assert like(ratio, discrete.snr(bar).item()) == ratio
    assert like(signal, bar.sqrt().item()) == signal


@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled-linear", "sigmoid"])
def test_zero_terminal_snr(schedule):
    betas = discrete.betas(schedule)
    rescaled = discrete.zero_terminal_snr(betas)
    bar, before = discrete.alpha_bar(rescaled), discrete.alpha_bar(betas)
    assert bar[-1] == 0
    assert discrete.snr(bar)[-1] == 0
    assert torch.isinf(discrete.sigma(bar)[-1])
    assert rescaled[-1] == 1
    assert bar[0].item() == pytest.approx(before[0].item(), rel=1e-12)
    assert (bar.diff() < 0).all()
    assert torch.isfinite(rescaled).all()


def test_table_2():
    """T = 1000, S = 10."""
    assert discrete.timesteps(1000, 10, "leading") == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert discrete.timesteps(1000, 10, "linspace") == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert discrete.timesteps(1000, 10, "trailing") == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]


def test_scales_of_the_linear_schedule():
    for scale in (0.25, 0.5, 0.75, 1.0):
        betas = discrete.betas("linear", scale=scale)
        assert betas[0].item() == pytest.approx(scale * 1e-4)
        assert betas[-1].item() == pytest.approx(scale * 0.02)
        assert len(betas) == 1000


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("T", "steps"), [(1000, 1), (1000, 7), (1000, 1000), (50, 49), (10, 3)])
def test_timesteps_are_distinct_and_in_range(spacing, T, steps):
    chosen = discrete.timesteps(T, steps, spacing)
    assert len(set(chosen)) == steps
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] >= 1
    assert chosen[0] <= T
    assert spacing == "leading" or chosen[0] == T


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discrete.betas("quadratic"), "schedule is 'quadratic'; allowed: 'linear', 'cosine'"),
        (lambda: discrete.betas(T=1), "T is 1"),
        (lambda: discrete.betas("cosine", scale=0.5), "scale is 0.5 with 'cosine'"),
        (lambda: discrete.timesteps(10, 11), "steps is 11; allowed: an integer from 1 to T = 10"),
        (lambda: discrete.timesteps(10, 5, "middle"), "spacing is 'middle'"),
        (lambda: discrete.zero_terminal_snr(torch.zeros(5, dtype=torch.float64)), "allowed: a falling sequence"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
