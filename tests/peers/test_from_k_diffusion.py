"""Our denoisers in k-diffusion's samplers, and k-diffusion's wrappers under ours."""

import itertools

import pytest
import torch
from torch import nn

import engine
from engine import discrete
from engine.adapters import from_k_diffusion
from engine.preconditioning import EDM, Direct, Discrete
from engine.samplers import REGISTRY
from tests.helpers import Wavy, small_unet, wavy
from tests.peers.compare import CHURN, FLOAT32, RANGE, SHAPE, assert_agree
from tests.peers.k_diffusion_modules import k_diffusion_module

sampling, external = k_diffusion_module("sampling"), k_diffusion_module("external")
STEPS = 6
LATENTS = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.randn(STEPS, 3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = torch.eye(4)[[2, 0, 3]]
LOWER = {name.lower(): value for name, value in CHURN.items()}


@pytest.mark.parametrize(
    ("theirs", "their_options", "ours", "options"),
    [
        ("sample_euler", {}, "edm", {"solver": "euler"}),
        ("sample_euler", LOWER, "edm", CHURN | {"solver": "euler"}),
        ("sample_heun", {}, "edm", {}),
        ("sample_heun", LOWER, "edm", CHURN),
        ("sample_dpmpp_2m", {}, "dpmpp_2m", {}),
        ("sample_euler_ancestral", {}, "ddpm", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("label_dim", [0, 4])
def test_denoiser_in_their_samplers(theirs, their_options, ours, options, label_dim, monkeypatch):
    """A float32 network and a float64 state on both sides, so the rounding is the same."""
    denoiser = wavy(EDM(), SHAPE, label_dim=label_dim)
    sampler = REGISTRY[ours].make(STEPS, **RANGE, **options)
    sigmas = sampler.levels.sigmas(denoiser.preconditioning)
    noise = iter(NOISE)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(noise))
    extra_args = {"class_labels": LABELS} if label_dim else {}
    expected = getattr(sampling, theirs)(
        denoiser, LATENTS * sigmas[0], sigmas, extra_args=extra_args, disable=True, **their_options
    )
    monkeypatch.undo()
    got = engine.sample(
        denoiser,
        latents=LATENTS,
        noise=NOISE,
        class_labels=LABELS if label_dim else None,
        sampler=sampler,
        output_dtype=torch.float64,
    )
    if ours == "edm":
        assert torch.equal(got, expected)
    else:  # they multiply D, float32, by coefficients before it meets x
        assert_agree(got, expected, 8 * FLOAT32)


def test_unet_in_their_sampler():
    denoiser = small_unet()
    sampler = engine.samplers.edm(steps=4)
    sigmas = sampler.levels.sigmas(denoiser.preconditioning)
    latents = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(4))
    expected = sampling.sample_heun(denoiser, latents * sigmas[0], sigmas, disable=True)
    got = engine.sample(denoiser, latents=latents, sampler=sampler)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=1e-4 * expected.abs().max().item())


class Epsilon(nn.Module):
    """eps(x, t, class_cond), as k-diffusion's wrappers call a model."""

    def __init__(self):
        super().__init__()
        self.network = Wavy(label_dim=4)

    def forward(self, x, t, class_cond=None):
        labels = torch.zeros(len(x), 4) if class_cond is None else torch.eye(4)[class_cond]
        return self.network(x, t.to(torch.float32), labels)


def class_cond(labels):
    return {} if labels is None else {"class_cond": labels.argmax(1)}


@pytest.mark.parametrize("label_dim", [0, 4])
def test_their_wrapper_in_our_samplers(label_dim):
    """Theirs of a discrete epsilon model is `Discrete`; quantized, since `Discrete` rounds to its timesteps."""
    betas = discrete.betas()
    wrapper = external.DiscreteEpsDDPMDenoiser(Epsilon(), discrete.alpha_bar(betas).float(), quantize=True)
    theirs = from_k_diffusion(wrapper, img_shape=SHAPE, label_dim=label_dim, extra_args=class_cond)
    assert theirs.preconditioning == Direct(wrapper.sigma_min.item(), wrapper.sigma_max.item())
    ours = engine.Denoiser(Wavy(label_dim=4), Discrete(), img_shape=SHAPE).eval()
    sampler = engine.samplers.ddim(steps=5, discretization="trailing")
    levels = sampler.levels.sigmas(ours.preconditioning)
    x = LATENTS * levels[0]
    labels = {"class_labels": LABELS if label_dim else torch.zeros(3, 4)}
    expected = engine.sample(ours, latents=LATENTS, sampler=sampler, **labels)
    with torch.no_grad():
        for sigma, sigma_next in itertools.pairwise(levels):  # DDIM by hand, on the adapted denoiser
            D = theirs(x, sigma, LABELS if label_dim else None)
            x = D + (sigma_next / sigma) * (x - D)
    torch.testing.assert_close(x.float(), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("ours", ["edm", "dpmpp_2m", "ddpm"])
def test_wrapper_gives_the_same_images_in_both_packages(ours, monkeypatch):
    wrapper = external.VDenoiser(Epsilon()).eval()
    denoiser = from_k_diffusion(wrapper, img_shape=SHAPE, label_dim=4, extra_args=class_cond, **RANGE)
    sampler = REGISTRY[ours].make(STEPS)
    sigmas = sampler.levels.sigmas(denoiser.preconditioning)
    assert sigmas[0].item() == pytest.approx(RANGE["sigma_max"])
    noise = iter(NOISE)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(noise))
    theirs = {"edm": "sample_heun", "dpmpp_2m": "sample_dpmpp_2m", "ddpm": "sample_euler_ancestral"}[ours]

    def rounded(x, sigma, **extra_args):  # the engine gives a float32 network float32
        return wrapper(x.float(), sigma.float(), **extra_args)

    expected = getattr(sampling, theirs)(
        rounded, LATENTS * sigmas[0], sigmas, extra_args=class_cond(LABELS), disable=True
    )
    monkeypatch.undo()
    got = engine.sample(
        denoiser, latents=LATENTS, noise=NOISE, class_labels=LABELS, sampler=sampler, output_dtype=torch.float64
    )
    if ours == "edm":
        assert torch.equal(got, expected)
    else:
        assert_agree(got, expected, 64 * FLOAT32)


def test_a_plain_function():
    """And one that returns its input: the engine fills that buffer again, so the adapter copies."""
    identity = from_k_diffusion(lambda x, sigma: x, img_shape=SHAPE, **RANGE)
    net_in = torch.randn(2, *SHAPE)
    F = identity.call_network(net_in, torch.ones(2), None)
    assert torch.equal(F, net_in)
    assert F.data_ptr() != net_in.data_ptr()
    got = engine.sample(
        from_k_diffusion(
            lambda x, sigma, class_labels: x / 2 + class_labels.sum(), img_shape=SHAPE, label_dim=2, **RANGE
        ),
        seeds=[1, 2],
        class_labels=0,
    )
    assert got.shape == (2, *SHAPE)


def test_errors():
    with pytest.raises(ValueError, match="denoiser is a int; allowed: a callable"):
        from_k_diffusion(3, img_shape=SHAPE)
    with pytest.raises(ValueError, match="sigma_max is None, and function has none"):
        from_k_diffusion(lambda x, sigma: x, img_shape=SHAPE, sigma_min=0.1)
    with pytest.raises(ValueError, match=r"sigma_min is 2\.0, sigma_max 1\.0"):
        from_k_diffusion(lambda x, sigma: x, img_shape=SHAPE, sigma_min=2, sigma_max=1)
