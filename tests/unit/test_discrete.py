"""Discrete-time schedules against the printed tables of Lin et al. 2024 (Tables 1 and 2), and models that use them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine import discrete
from engine.plan import Op, Row
from engine.preconditioning import EDM, Discrete
from engine.samplers import REGISTRY, InversionSampler, Levels


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
        (lambda: discrete.timesteps(10, 3, "leading", 4), "offset is 4 with 'leading' and 3 steps; allowed: 0 to 3"),
        (lambda: discrete.timesteps(10, 3, "trailing", 1), "offset is 1 with 'trailing' and 3 steps; allowed: 0 to 0"),
        (lambda: Levels(discretization="edm", offset=1), "offset is 1; allowed: 0, unless discretization is 'leading'"),
        (lambda: Discrete(T=3, betas=(0.1, 0.2)), "betas has 2 entries; allowed: T = 3 of them, between 0 and 1"),
        (lambda: Discrete(T=2, betas=(0.1, 1.0)), "betas has 2 entries; allowed: T = 2 of them, between 0 and 1"),
        (lambda: discrete.zero_terminal_snr(torch.zeros(5, dtype=torch.float64)), "allowed: a falling sequence"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class DiscreteGaussian(nn.Module):
    """What a network of T timesteps returns at its optimum for data ~ N(0.5, 0.3^2), in any parametrization."""

    mean, std = 0.5, 0.3

    def __init__(self, preconditioning):
        super().__init__()
        self.preconditioning = preconditioning
        self.register_buffer("levels", preconditioning.levels())

    def forward(self, x, step):
        sigma = self.levels[step.long()][:, None]
        s = (1 + sigma**2) ** -0.5
        noise = torch.where(sigma.isinf(), 1.0, sigma * s)
        D = (self.std**2 * s * x + noise**2 * self.mean) / (self.std**2 * s**2 + noise**2)
        if self.preconditioning.prediction == "epsilon":
            return (x - s * D) / noise
        return D if self.preconditioning.prediction == "sample" else (s * x - D) / noise


def discrete_gaussian(**options):
    pre = Discrete(**options)
    return engine.Denoiser(DiscreteGaussian(pre), pre, img_shape=(4,))


SAMPLERS = {name: entry for name, entry in REGISTRY.items() if name not in ("edm", "ablation", "rk45")}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_timesteps_are_levels_like_any_other(name, prediction):
    """The rows for s x draw what the rows for x draw, on the same levels, with the same noise."""
    denoiser = discrete_gaussian(prediction=prediction)
    sampler = SAMPLERS[name].make(8, discretization="trailing")
    levels = sampler.levels.sigmas(denoiser.preconditioning)

    @dataclass(frozen=True)
    class Unscaled(engine.Sampler):
        steps = sampler.steps

        def rows(self, preconditioning):
            return [Row(Op.BEGIN, begin_scale=levels[0].item()), *sampler._rows(levels.tolist())]

    generator = torch.Generator().manual_seed(0)
    draws = engine.Plan(sampler, denoiser.preconditioning).draws
    arguments = {
        "latents": torch.randn(5, 4, generator=generator, dtype=torch.float64),
        "noise": torch.randn(draws, 5, 4, generator=generator, dtype=torch.float64),
        "output_dtype": torch.float64,
    }
    scaled, plain = (engine.sample(denoiser, sampler=s, **arguments) for s in (sampler, Unscaled()))
    assert (scaled - plain).abs().max() < 2e-5  # preconditioning is float32: sigma is up to 157 here


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.zero_snr])
@pytest.mark.parametrize("prediction", ["v", "sample"])
def test_zero_terminal_snr_draws_the_data(name, prediction):
    """From infinite sigma: every number of the plan finite, and samples with the mean and spread of the data."""
    denoiser = discrete_gaussian(zero_snr=True, prediction=prediction)
    steps = 400 if name in ("ddim", "ddpm") else 60  # of first order
    sampler = SAMPLERS[name].make(steps, discretization="trailing")
    plan = engine.Plan(sampler, denoiser.preconditioning)
    assert math.isinf(plan.sigmas[0])
    assert plan.rows[0].begin_scale == 1
    assert np.isfinite(plan.table[:, 2:]).all()
    images = engine.sample(denoiser, seeds=range(2000), sampler=sampler, batch_size=2000).double()
    assert images.mean().item() == pytest.approx(0.5, abs=0.02)
    assert images.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "ddim",
            {"prediction": "epsilon"},
            "^prediction is 'epsilon'; allowed: 'v', 'sample', to start from zero terminal SNR$",
        ),
        ("dpmpp_2s", {"prediction": "v"}, "allowed: finite sigma; dpmpp_2s has no form at zero terminal SNR"),
        ("lms", {"prediction": "v"}, "lms has no form at zero terminal SNR"),
        (
            "ablation",
            {"prediction": "v"},
            "^discretization is 'trailing'; allowed: finite sigma; ablation has no form at zero terminal SNR$",
        ),
        ("edm", {"prediction": "v"}, "^sigma_max is inf; allowed: a finite number above sigma_min = 0.002$"),
    ],
)
def test_what_has_no_form_at_zero_snr_is_refused(name, options, message):
    pre = Discrete(zero_snr=True, **options)
    arguments = {} if name == "edm" else {"discretization": "trailing"}
    arguments |= {"sigma_max": math.inf} if name == "edm" else {}
    with pytest.raises(ValueError, match=message):
        engine.Plan(REGISTRY[name].make(10, **arguments), pre)


@pytest.mark.parametrize(("make", "name"), [(engine.samplers.edm, "edm"), (InversionSampler, "the inversion")])
def test_levels_with_which_others_have_no_form_at_zero_snr(make, name):
    sampler = replace(make(), levels=Levels(10, discretization="trailing"))
    message = f"discretization is 'trailing'; allowed: finite sigma; {name} has no form at zero terminal SNR"
    with pytest.raises(ValueError, match=f"^{message}$"):
        engine.Plan(sampler, Discrete(zero_snr=True, prediction="v"))


def test_offset_moves_leading_timesteps():
    assert discrete.timesteps(10, 3, "leading") == [7, 4, 1]
    assert discrete.timesteps(10, 3, "leading", 3) == [10, 7, 4]


@pytest.mark.parametrize("zero_snr", [False, True])
def test_betas_given_as_numbers(zero_snr):
    """As a list, which a config is read from; the record hashes, and does not print a thousand numbers."""
    betas = discrete.betas("cosine").tolist()
    given = Discrete(betas=betas, zero_snr=zero_snr)
    named = Discrete("cosine", zero_snr=zero_snr)
    assert torch.equal(given.levels(), named.levels())
    assert given == Discrete(betas=tuple(betas), zero_snr=zero_snr) != named
    assert hash(given) == hash(Discrete(betas=tuple(betas), zero_snr=zero_snr))
    assert "betas" not in repr(given)


def test_discrete_levels():
    pre = Discrete()
    assert pre.sigma_max == pytest.approx(157.4, abs=0.1)
    assert pre.sigma_min == pytest.approx(0.01, abs=1e-4)
    levels = pre.levels()
    assert torch.equal(pre.nearest(levels), torch.arange(1000))
    assert torch.equal(pre.round_sigma(levels * 1.0001), levels)
    assert Discrete(zero_snr=True).nearest(torch.tensor([math.inf, 1e30])).tolist() == [999, 998]
    with pytest.raises(ValueError, match="prediction is 'x'"):
        Discrete(prediction="x")
    with pytest.raises(
        ValueError, match="discretization is 'leading'; allowed: edm, vp, ve, iddpm with EDM; this one with Discrete"
    ):
        engine.Plan(engine.samplers.ddim(5, discretization="leading"), EDM())
    with pytest.raises(ValueError, match=r"^sigma_max is 3\.0; allowed: None, unless discretization is 'edm', 'vp', "):
        engine.samplers.ddim(5, sigma_max=3.0, discretization="leading")
