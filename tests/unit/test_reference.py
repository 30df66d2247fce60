"""The table-driven loop against the paper's Algorithm 2, to the bit; order of convergence; known answers."""

import itertools
import math

import pytest
import torch

import engine
from engine.preconditioning import EDM, IDDPM, VE, VP, Direct
from engine.reference import algorithm2
from tests.helpers import gaussian, ideal, wavy

CHURN = {"S_churn": 30.0, "S_tmin": 0.01, "S_tmax": 1.0, "S_noise": 1.007}


def paper(denoiser, latents, noise, state_dtype, **settings):
    with torch.no_grad():
        return algorithm2(
            denoiser,
            denoiser.preconditioning,
            latents,
            lambda i: noise[i],
            state_dtype=state_dtype,
            **settings,
        )


@pytest.mark.parametrize("pre", [EDM(), VP(), VE(), IDDPM(), Direct()], ids=lambda pre: type(pre).__name__)
@pytest.mark.parametrize("churn", [{}, CHURN], ids=["ode", "churn"])
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_engine_equals_algorithm_2_to_the_bit(pre, churn, state_dtype, dtype, steps):
    denoiser = wavy(pre, extra_channels=3 if isinstance(pre, IDDPM) else 0)
    denoiser.model.to(dtype)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 3, 8, 6, generator=generator)
    noise = torch.randn(steps, 4, 3, 8, 6, generator=generator, dtype=torch.float64)
    sampler = engine.samplers.edm(steps=steps, **churn)
    images = engine.sample(
        denoiser,
        latents=latents,
        noise=noise,
        sampler=sampler,
        state_dtype=state_dtype,
        output_dtype=state_dtype,
        backend="reference",
    )
    assert torch.equal(images, paper(denoiser, latents, noise, state_dtype, steps=steps, **churn))


def test_philox_noise_equals_the_same_noise_given_as_tensors():
    denoiser, seeds = wavy(EDM()), [5, 2**63 + 1, 0]
    sampler = engine.samplers.edm(steps=6, S_churn=20)
    latents = engine.noise.normal(seeds, 0, denoiser.img_shape)
    noise = torch.stack([engine.noise.normal(seeds, 1 + i, denoiser.img_shape) for i in range(6)])
    drawn = engine.sample(denoiser, seeds=seeds, sampler=sampler)
    given = engine.sample(denoiser, latents=latents, noise=noise, sampler=sampler)
    assert torch.equal(drawn, given)
    assert not torch.equal(drawn, engine.sample(denoiser, seeds=[6, 2**63 + 2, 1], sampler=sampler))


def order_of(solver: str) -> float:
    """The slope of log(error) against log(step size) for the Gaussian's ODE between two noise levels."""
    denoiser = gaussian()
    network = denoiser.model
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    errors, counts = [], [16, 32, 64, 128]
    for steps in counts:
        # The last step, from sigma_min to 0, is the same in all: compare just before it.
        sampler = engine.samplers.edm(steps=steps, sigma_min=0.1, sigma_max=20, rho=7, solver=solver)
        images = engine.sample(denoiser, latents=latents, sampler=sampler, output_dtype=torch.float64)
        D = lambda x: network(x, torch.full([len(x)], 0.1))  # noqa: E731
        exact_at_min = network.solution(latents * 20, 20, 0.1)
        exact = exact_at_min + (0 - 0.1) * (exact_at_min - D(exact_at_min)) / 0.1
        errors.append((images - exact).abs().max().item())
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    return slopes[-1]


def test_heun_converges_with_order_two():
    assert order_of("heun") == pytest.approx(2, abs=0.1)


def test_euler_converges_with_order_one():
    assert order_of("euler") == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("churn", [{}, {"S_churn": 20.0, "S_noise": 1.003}], ids=["ode", "churn"])
def test_the_ideal_denoiser_lands_on_its_data(churn):
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(5, 1, 4, 4, generator=generator) * 2 - 1
    denoiser = ideal(data)
    latents = torch.randn(64, 1, 4, 4, generator=generator)
    noise = torch.randn(40, 64, 1, 4, 4, generator=generator)
    images = paper(denoiser, latents, noise, torch.float64, steps=40, **churn)
    distance = (images.float()[:, None] - data[None]).abs().flatten(2).amax(2)
    assert distance.min(1).values.max() < 1e-3
    assert len(distance.argmin(1).unique()) == 5  # and not all on the same point


def test_gaussian_samples_have_the_moments_of_the_data():
    denoiser = gaussian(dtype=torch.float32)
    images = engine.sample(denoiser, seeds=range(4000), sampler=engine.samplers.edm(steps=40), batch_size=4000)
    assert (images.mean(0) - denoiser.model.mean).abs().max() < 4 * 0.5 / math.sqrt(4000)
    assert images.std(0) == pytest.approx(torch.full((1, 4, 4), 0.5).numpy(), abs=4 * 0.5 / math.sqrt(8000))
