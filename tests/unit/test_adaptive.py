"""RK45: the order of its tableau, its tolerance, its counts, and that a sample does not depend on its batch."""

import itertools
import math

import pytest
import torch
from torch import nn

import engine
from engine import adaptive
from engine.preconditioning import EDM, Direct
from engine.samplers import rk45
from tests.helpers import gaussian, wavy


def solve(tolerance, latents=None, **options):
    denoiser = gaussian()
    latents = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = rk45(rtol=tolerance, atol=tolerance, **options)
    x, nfe = adaptive.solve(lambda x, s, _: denoiser.model(x, s), latents * 80, 80.0, 0.002, sampler)
    exact = denoiser.model.solution(latents * 80, 80.0, 0.002)
    return (x - exact).abs().max().item(), nfe


def test_the_error_follows_the_tolerance():
    errors, counts = zip(*[solve(10.0**-n) for n in (2, 3, 4, 5, 6)], strict=True)
    assert all(error < 20 * 10.0**-n for n, error in zip((2, 3, 4, 5, 6), errors, strict=True)), errors
    nfe = [count.double().mean().item() for count in counts]
    assert nfe == sorted(nfe)
    assert 1.3 < nfe[4] / nfe[2] < 4.0  # fifth order: a hundred times as exact costs 100^(1/5) = 2.5 times as much


def test_one_step_is_of_fifth_order():
    """x' = x cos t from 1: halving the interval of one step divides its error by 2^6, and the estimate by 2^5."""

    def slope(x, t, _):
        return x * torch.cos(torch.as_tensor(t, dtype=x.dtype)).reshape(-1, 1)

    start, everyone = torch.ones(1, 1, dtype=torch.float64), torch.arange(1)
    errors, estimates = [], []
    for h in (0.4, 0.2, 0.1):
        at, step = torch.zeros(1), torch.tensor([h], dtype=torch.float64)
        x, error, last = adaptive._stages(slope, start, slope(start, 0.0, None), at, step, everyone)
        assert torch.equal(last, slope(x, h, None))  # first same as last
        errors.append(abs(x.item() - math.exp(math.sin(h))))
        estimates.append(abs(error.item()))
    for a, b in itertools.pairwise(errors):
        assert math.log2(a / b) == pytest.approx(6, abs=0.5)
    for a, b in itertools.pairwise(estimates):
        assert math.log2(a / b) == pytest.approx(5, abs=0.5)


def test_steps_are_rejected_where_the_slope_jumps():
    seen = []

    def slope(x, t, samples):
        seen.append(len(samples))
        return torch.where(t[:, None] > 0.5, 10.0, 1.0).expand_as(x).to(x.dtype)

    x, nfe = adaptive.dormand_prince(slope, torch.zeros(1, 1, dtype=torch.float64), 0.0, 1.0, 1e-6, 1e-6, 10_000)
    assert x.item() == pytest.approx(0.5 + 5.0, abs=1e-3)
    assert nfe.item() == len(seen) > 60


def test_a_sample_does_not_depend_on_its_batch():
    denoiser = wavy(EDM(), (2, 4, 4), label_dim=3)
    options = {"sampler": rk45(), "output_dtype": torch.float64}
    together = engine.sample(denoiser, seeds=[1, 2, 3], class_labels=[0, 1, 2], **options)
    for i in range(3):
        alone = engine.sample(denoiser, seeds=[i + 1], class_labels=[i], **options)
        assert torch.equal(together[i], alone[0])


def test_it_converges_to_what_small_fixed_steps_converge_to():
    denoiser = wavy(EDM(), (2, 4, 4))
    fixed = engine.sample(denoiser, seeds=range(4), sampler=engine.samplers.edm(steps=400))
    errors = [
        (engine.sample(denoiser, seeds=range(4), sampler=rk45(tol, tol)) - fixed).abs().max().item()
        for tol in (1e-2, 1e-3, 1e-5)
    ]
    assert errors[0] > errors[2]
    assert errors[2] < 1e-3
    assert errors[2] < (engine.sample(denoiser, seeds=range(4)) - fixed).abs().max().item()


def test_masked_pixels_stay():
    image = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    mask = torch.arange(16).reshape(4, 4) % 3 == 0
    drawn = engine.sample(wavy(EDM(), (1, 4, 4)), seeds=[1], sampler=rk45(), image=image, mask=mask)
    assert torch.equal(drawn[:, :, mask], image[:, :, mask])


class Broken(nn.Module):
    def forward(self, x, sigma):
        return torch.where(sigma.reshape(-1, 1, 1, 1) < 1, torch.nan, 0.0) * x


class OnceBroken(nn.Module):
    """NaN in the last slope of the first step alone, the one that only the error estimate uses."""

    calls = 0

    def forward(self, x, sigma):
        self.calls += 1
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2) * (torch.nan if self.calls == 8 else 1.0)


def test_an_error_estimate_that_is_not_finite_is_a_failure():
    with pytest.raises(engine.NonFiniteError, match="seed 1 became non-finite in rk45"):
        engine.sample(engine.Denoiser(OnceBroken(), Direct(), img_shape=(1, 2, 2)), seeds=[1], sampler=rk45())


def test_errors():
    with pytest.raises(engine.NonFiniteError, match=r"seed 7 \(and 1 more\) became non-finite in rk45"):
        engine.sample(engine.Denoiser(Broken(), Direct(), img_shape=(1, 2, 2)), seeds=[7, 8], sampler=rk45())
    with pytest.raises(ArithmeticError, match=r"^seed 9: more than max_nfe = 20 evaluations for rtol = 1e-06"):
        engine.sample(wavy(EDM()), seeds=[9], sampler=rk45(1e-6, 1e-6, max_nfe=20))
    with pytest.raises(ValueError, match=r"sampler is .*AdaptiveSampler.*; allowed: samplers.edm with"):
        engine.invert(wavy(EDM()), torch.zeros(1, 3, 8, 6), sampler=rk45())
