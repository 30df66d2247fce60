"""Noise levels: each discretization's, and one's own."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import engine
from engine import samplers
from engine.plan import Plan
from engine.preconditioning import EDM, IDDPM, VE, VP, Discrete
from engine.samplers import REGISTRY, GivenLevels, Levels
from tests.cases import assert_same_bits
from tests.helpers import wavy


@pytest.mark.parametrize("pre", [EDM(), VP(), VE(), IDDPM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("discretization", ["edm", "vp", "ve", "iddpm"])
def test_levels_are_the_network_s(pre, discretization):
    levels = Levels(10, discretization=discretization)
    sigmas = levels.sigmas(pre)
    assert sigmas.shape == (11,)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert sigmas[0] <= pre.sigma_max * (1 + 1e-6)
    assert sigmas[-2] >= pre.sigma_min * (1 - 1e-6)
    assert torch.equal(pre.round_sigma(sigmas), sigmas)


def test_published_ranges():
    sigmas = {name: Levels(18, discretization=name).sigmas(EDM()) for name in ("edm", "vp", "ve", "iddpm")}
    ends = {name: (levels[0].item(), levels[-2].item()) for name, levels in sigmas.items()}
    assert ends["edm"] == pytest.approx((80, 0.002))
    assert ends["vp"] == pytest.approx((152.16697, 0.01048599), rel=1e-6)
    assert ends["ve"] == pytest.approx((100, 0.02))
    assert ends["iddpm"] == pytest.approx((80.203676, 0.00642247), rel=1e-6)


@pytest.mark.parametrize("pre", [EDM(), VP(), VE(), EDM(0.002, 80.0), IDDPM(), Discrete()], ids=repr)
@pytest.mark.parametrize("name", ["edm", "ablation", "dpmpp_2m", "ddpm"])
def test_given_levels_are_those_of_the_schedule_to_the_bit(pre, name):
    chosen = REGISTRY[name].make(steps=9, sigma_min=0.03, sigma_max=80)
    sigmas = chosen.levels.sigmas(pre)[:-1]
    for given in (sigmas, sigmas.tolist(), sigmas.numpy()):
        sampler = replace(REGISTRY[name].make(), levels=GivenLevels(given))
        assert np.array_equal(Plan(sampler, pre).table, Plan(chosen, pre).table, equal_nan=True)
    drawn = [engine.sample(wavy(pre), seeds=[1, 2], sampler=s) for s in (chosen, sampler)]
    assert_same_bits(*drawn, name)
    assert hash(sampler) == hash(replace(sampler)) != hash(replace(sampler, levels=GivenLevels(sigmas[1:])))


def test_given_levels_can_be_inverted():
    given = replace(samplers.edm(), levels=GivenLevels([80.0, 20.0, 5.0, 1.0, 0.1]))
    assert Plan(samplers.InversionSampler.of(given), EDM()).sigmas == (0.1, 1, 1, 5, 5, 20, 20, 80)


@pytest.mark.parametrize("sigmas", [3.0, "80", [], [1.0], [1.0, 2.0], [2.0, 2.0], [2.0, 0.0], [math.inf, 1], [2, "1"]])
def test_what_are_no_levels(sigmas):
    allowed = "two or more falling numbers above 0, the 0 at the end left out"
    with pytest.raises(ValueError, match=f"^{re.escape(f'sigmas is {sigmas!r}; allowed: {allowed}')}$"):
        GivenLevels(sigmas)


@pytest.mark.parametrize(
    ("sigmas", "pre", "span"),
    [
        ((200.0, 1.0), VE(), "0.02 to 100"),
        ((1.0, 0.01), VE(), "0.02 to 100"),
        ((1.0, 0.9999), IDDPM(), "0.00642234 to 20291.2"),
    ],
)
def test_levels_that_the_network_does_not_have(sigmas, pre, span):
    message = f"sigmas is {sigmas}; allowed: from {span}, no two of which the network rounds to one"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Plan(replace(samplers.edm(), levels=GivenLevels(sigmas)), pre)


@pytest.mark.parametrize("changes", [{}, {"given": (80.0, 2.0)}, {"rho": 3.0}])
def test_given_levels_are_not_changed_but_made_anew(changes):
    message = r"GivenLevels\(\) does not take .*; allowed: sigmas alone; in place of dataclasses.replace make another"
    with pytest.raises(TypeError, match=f"^{message}"):
        replace(GivenLevels([80.0, 1.0]), **changes)


@pytest.mark.parametrize("make", [samplers.edm, samplers.ablation, samplers.ddim, samplers.InversionSampler])
def test_levels_are_a_record(make):
    message = r"levels is \[80, 1\]; allowed: samplers\.Levels\(\.\.\.\), samplers\.GivenLevels\(\[80\.0, \.\.\.\]\)"
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(make(), levels=[80, 1])


@pytest.mark.parametrize("rho", [0.005, 0.3, 1e12])
def test_a_rho_that_float64_has_no_levels_of(rho):
    message = f"rho is {rho}; allowed: 0.34 to 1e+09 for levels from 80 to 0.002"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Plan(samplers.edm(rho=rho), EDM())


@pytest.mark.parametrize("rho", [0.34, 1e9])
def test_every_other_rho_reaches_the_ends(rho):
    sigmas = Levels(rho=rho).sigmas(EDM())
    assert (sigmas[0].item(), sigmas[-2].item()) == pytest.approx((80.0, 0.002), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discretization": "vp", "rho": 2}, "rho is 2; allowed: 7.0, unless discretization is 'edm'"),
        ({"C_1": 0.5}, "C_1 is 0.5; allowed: 0.001, unless discretization is 'iddpm'"),
        ({"discretization": "ve", "C_2": 0.5}, "C_2 is 0.5; allowed: 0.008, unless discretization is 'iddpm'"),
        ({"M": 7}, "M is 7; allowed: 1000, unless discretization is 'iddpm'"),
        (
            {"discretization": "trailing", "sigma_min": 0.1},
            "sigma_min is 0.1; allowed: None, unless discretization is 'edm', 'vp', 've', 'iddpm'",
        ),
    ],
)
def test_what_a_discretization_does_not_read_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Levels(**options)


@pytest.mark.parametrize("make", [samplers.edm, samplers.ablation, samplers.ddim, samplers.InversionSampler])
def test_what_the_sampler_does_not_read_either_is_refused(make):
    message = "epsilon_s is 0.01; allowed: 0.001, unless discretization is 'vp' or schedule is 'vp'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(make(), levels=Levels(epsilon_s=0.01))
    assert replace(make(), levels=Levels(discretization="vp", epsilon_s=0.01)).levels.epsilon_s == 0.01


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("edm", {"rho": 3.0}),
        ("ddim", {"discretization": "edm", "rho": 3.0}),
        ("ablation", {"discretization": "vp", "epsilon_s": 0.01}),
        ("ablation", {"schedule": "vp", "epsilon_s": 0.01}),
        ("ablation", {"discretization": "iddpm", "C_1": 0.9}),
        ("ablation", {"discretization": "iddpm", "C_2": 0.5}),
        ("ablation", {"discretization": "iddpm", "M": 100}),
        ("ablation", {"alpha": 0.5}),
    ],
)
def test_what_is_not_refused_is_read(name, options):
    chosen = {key: value for key, value in options.items() if isinstance(value, str)}
    changed, default = (Plan(REGISTRY[name].make(4, **given), EDM()) for given in (options, chosen))
    assert changed != default


def test_levels_are_made_on_the_cpu_whatever_the_default_device():
    plan = Plan(samplers.ddim(5, discretization="linspace"), Discrete(T=33))
    with torch.device("meta"):
        assert Plan(samplers.ddim(5, discretization="linspace"), Discrete(T=33)) == plan
        assert Discrete(T=3, betas=(0.11, 0.22, 0.33)).levels().device.type == "cpu"


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "lms", "dpmpp_2m_sde"])
def test_levels_that_round_to_one_are_named(name):
    """Multistep methods divide by the step from one level to the next."""
    message = r"steps is 20; allowed: fewer for \w+: two noise levels round to 64\.1611, the nearest there is"
    with pytest.raises(ValueError, match=message):
        Plan(REGISTRY[name].make(steps=20), IDDPM(M=100))
    assert Plan(REGISTRY[name].make(steps=9), IDDPM(M=100)).nfe == 9
