"""Beta schedules, timesteps, noise levels and EDM's preconditioning against diffusers."""

import contextlib
import sys
from fractions import Fraction

import pytest
import torch

from engine import discrete
from engine.preconditioning import EDM, Direct
from engine.samplers import Levels
from tests.peers.compare import FLOAT32, float64

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (make test)")
ddpm = sys.modules[diffusers.DDPMScheduler.__module__]
SCHEDULES = [
    ("linear", {"beta_schedule": "linear"}, {}),
    ("linear", {"beta_schedule": "linear", "beta_start": 0.5e-4, "beta_end": 0.01}, {"scale": 0.5}),
    ("scaled-linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, {}),
    ("cosine", {"beta_schedule": "squaredcos_cap_v2"}, {}),
    ("sigmoid", {"beta_schedule": "sigmoid"}, {}),
]
schedules = pytest.mark.parametrize(("ours", "theirs", "options"), SCHEDULES, ids=str)
of_T = pytest.mark.parametrize("T", [1000, 50])


@schedules
@of_T
def test_betas(ours, theirs, options, T):
    """Ours are the float64 values, rounded to float32 once; theirs are computed in float32."""
    with float64(ddpm):
        exact = diffusers.DDPMScheduler(num_train_timesteps=T, **theirs).betas
    shipped = diffusers.DDPMScheduler(num_train_timesteps=T, **theirs).betas
    betas = discrete.betas(ours, T, **options)
    torch.testing.assert_close(betas.double(), exact.double(), rtol=1.01 * FLOAT32, atol=0)
    # The logistic curve's argument, up to 6, is rounded first.
    torch.testing.assert_close(betas, shipped, rtol=(8 if ours == "sigmoid" else 4) * FLOAT32, atol=0)


@schedules
@of_T
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_bar(ours, theirs, options, T, zero_snr):
    """In float64 they are equal; as it ships, theirs is float32.

    torch's cumprod accumulates in float64 and rounds once. But rescaled betas, differences of rounded numbers, make
    every one of T factors wrong by a rounding.
    """

    def roots():
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=T, rescale_betas_zero_snr=zero_snr, **theirs)
        plain = diffusers.DDPMScheduler(num_train_timesteps=T, **theirs).betas
        betas = discrete.zero_terminal_snr(plain) if zero_snr else plain
        return scheduler.alphas_cumprod.sqrt(), discrete.alpha_bar(betas).sqrt()

    with float64(ddpm):
        expected, got = roots()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    expected, got = roots()
    assert (got - expected).abs().max() <= (T if zero_snr else 2) * FLOAT32


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("T", [1000, 50, 37])
def test_timesteps(spacing, name, T):
    """All numbers of steps. They count t from 0, we from 1 as the paper does."""
    scheduler = getattr(diffusers, name)(num_train_timesteps=T, timestep_spacing=spacing)
    for steps in range(2, T + 1):  # np.linspace gives one step to t = 0, the image; we give it to T, the noise
        scheduler.set_timesteps(steps)
        theirs = [t + 1 for t in scheduler.timesteps.tolist()]
        got = discrete.timesteps(T, steps, spacing)
        if spacing == "trailing":  # np.arange(T, 0, -T / steps) may reach a last 1e-14, for which they visit t = -1
            theirs, beyond = theirs[:steps], theirs[steps:]
            assert beyond in ([], [0])
        for i, (t, expected) in enumerate(zip(reversed(got), reversed(theirs), strict=True)):
            exact = 1 + Fraction(i * (T - 1), steps - 1) if spacing == "linspace" else Fraction((i + 1) * T, steps)
            # A half goes to the even number, which counted from 0 is another one; and np.arange may just miss the half.
            assert t == expected or abs(t - exact) == abs(expected - exact) == Fraction(1, 2), (steps, i)


@pytest.mark.parametrize("wide", [False, True], ids=["as it ships", "float64"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize(("schedule", "discretization"), [("karras", "edm"), ("exponential", "ve")])
def test_levels(name, schedule, discretization, wide):
    with float64(sys.modules[getattr(diffusers, name).__module__]) if wide else contextlib.nullcontext():
        scheduler = getattr(diffusers, name)(sigma_schedule=schedule)
        scheduler.set_timesteps(18)
    sigmas = Levels(18, 0.002, 80.0, discretization=discretization).sigmas(Direct())
    assert sigmas[-1] == scheduler.sigmas[-1] == 0
    # A ramp in float32 is off by one rounding of its largest value: 80^(1/7) in rho's power, or ln 80 - ln 0.002.
    error = 1e-12 if wide else 7 * (80 / 0.002) ** (1 / 7) * 2 * FLOAT32
    torch.testing.assert_close(sigmas[:-1], scheduler.sigmas[:-1].double(), rtol=error, atol=0)


def test_preconditioning():
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    sigmas = torch.logspace(-3, 2, 50)
    c_skip, c_out, c_in, c_noise = EDM(sigma_data=0.5).coefficients(sigmas)
    one, zero = torch.ones(50), torch.zeros(50)
    for got, expected in [
        (c_skip, scheduler.precondition_outputs(one, zero, sigmas)),
        (c_out, scheduler.precondition_outputs(zero, one, sigmas)),
        (c_in, scheduler.precondition_inputs(one, sigmas)),
        (c_noise, scheduler.precondition_noise(sigmas)),
    ]:
        torch.testing.assert_close(got, expected, rtol=4 * FLOAT32, atol=0)  # both in float32, a few roundings each
