"""Our samplers against k-diffusion's, the code most later samplers were first written in."""

import pytest
import torch

from engine import Plan
from engine.preconditioning import Direct
from engine.samplers import REGISTRY, Levels
from tests.peers.compare import CHURN, DENOISER, LATENTS, NOISE, RANGE, STEPS, D, assert_agree, drawn, float64
from tests.peers.k_diffusion_modules import k_diffusion_module

sampling = k_diffusion_module("sampling")
THEIR_CHURN = {name.lower(): value for name, value in CHURN.items()}


@pytest.mark.parametrize(
    ("theirs", "their_options", "ours", "options"),
    [
        ("sample_euler", {}, "edm", {"solver": "euler"}),
        ("sample_euler", {}, "ddim", {}),
        ("sample_euler", THEIR_CHURN, "edm", CHURN | {"solver": "euler"}),
        ("sample_heun", {}, "edm", {}),
        ("sample_heun", THEIR_CHURN, "edm", CHURN),
        ("sample_heun", THEIR_CHURN, "ablation", CHURN),
        ("sample_euler_ancestral", {}, "ddpm", {}),
        ("sample_euler_ancestral", {}, "ddim", {"eta": 1.0}),
        ("sample_euler_ancestral", {"eta": 0.7}, "ddim", {"eta": 0.7}),
        *[("sample_lms", {"order": n}, "lms", {"order": n}) for n in (1, 2, 3, 4)],
        ("sample_dpmpp_2m", {}, "dpmpp_2m", {}),
        ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp_2s", {}),
        ("sample_dpmpp_sde", {"eta": 0.0, "r": 0.3}, "dpmpp_2s", {"r": 0.3}),
        *[("sample_dpmpp_2m_sde", {"eta": eta}, "dpmpp_2m_sde", {"eta": eta}) for eta in (0.0, 0.5, 1.0)],
    ],
    ids=str,
)
def test_sampler(theirs, their_options, ours, options, monkeypatch):
    if theirs == "sample_lms":
        pytest.importorskip("scipy.integrate", reason="needs scipy, to integrate (make test)")
    sampler = REGISTRY[ours].make(STEPS, **RANGE, **options)
    assert not options.get("S_churn") or _churns(sampler) == STEPS - 2
    noise = iter(NOISE)  # they draw one a step, as we number ours
    monkeypatch.setattr(torch, "randn_like", lambda x: next(noise))
    if theirs not in ("sample_euler", "sample_heun", "sample_lms", "sample_dpmpp_2m"):
        their_options = their_options | {"noise_sampler": lambda sigma, sigma_next: next(noise)}
    sigmas = sampler.levels.sigmas(DENOISER.preconditioning)
    expected = getattr(sampling, theirs)(lambda x, sigma: D(x, sigma[0]), LATENTS * sigmas[0], sigmas, disable=True,
                                         **their_options)  # fmt: skip
    assert_agree(drawn(sampler), expected)


def _churns(sampler):
    return sum(row.std > 0 for row in Plan(sampler, Direct()).rows)


@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        (lambda n: sampling.get_sigmas_karras(n, 0.002, 80.0), "edm", {}),
        (lambda n: sampling.get_sigmas_karras(n, 0.05, 20.0, rho=3.0), "edm", RANGE | {"rho": 3.0}),
        (lambda n: sampling.get_sigmas_exponential(n, 0.02, 100.0), "ve", {}),
        (lambda n: sampling.get_sigmas_vp(n, beta_d=19.9, beta_min=0.1, eps_s=1e-3), "vp", {}),
    ],
    ids=["karras", "karras-rho", "exponential", "vp"],
)
@pytest.mark.parametrize("steps", [2, STEPS, 100])
def test_levels(theirs, ours, options, steps):
    with float64():  # theirs start from torch.linspace in the default dtype
        expected = theirs(steps)
    got = Levels(steps, discretization=ours, **options).sigmas(Direct())
    assert got[-1] == expected[-1] == 0
    assert (got[:-1] / expected[:-1] - 1).abs().max() <= 1e-12
