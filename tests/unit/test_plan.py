"""Plans: the table says what the paper says, and refuses to be built wrongly."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from engine import Plan, samplers
from engine.plan import COLUMNS, Op, Row
from engine.preconditioning import EDM, IDDPM, VE, VP
from engine.samplers import Sampler


def test_heun_plan_of_the_paper():
    plan = Plan(samplers.edm(steps=18), EDM())
    assert plan.nfe == 35
    assert plan.steps == 18
    assert not plan.stochastic
    assert [row.op for row in plan.rows[:4]] == [Op.BEGIN, Op.PREDICT, Op.CORRECT, Op.PREDICT]
    assert plan.rows[-1].op is Op.EULER  # the last step ends at sigma = 0, where there is nothing to correct with
    levels = [80.0, *plan.sigmas[1::2]]
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert levels == pytest.approx(expected, rel=1e-12)
    assert plan.rows[0].begin_scale == pytest.approx(80.0)
    assert plan.rows[0].c_noise == pytest.approx(math.log(80) / 4)
    assert plan.rows[-1].evaluate == 0
    assert plan.table.shape == (36, len(COLUMNS))


def test_euler_has_one_evaluation_a_step():
    plan = Plan(samplers.edm(steps=7, solver="euler"), EDM())
    assert plan.nfe == 7
    assert {row.op for row in plan.rows[1:]} == {Op.EULER}


def test_churn_follows_algorithm_2():
    sampler = samplers.edm(steps=18, S_churn=40, S_tmin=0.05, S_tmax=50, S_noise=1.003)
    plan = Plan(sampler, EDM())
    assert plan.stochastic
    gamma = min(40 / 18, math.sqrt(2) - 1)
    steps = [row for row in plan.rows if row.op is not Op.PREDICT][:-1]
    for i, row in enumerate(steps):
        t = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        inside = 0.05 <= t <= 50
        expected = math.sqrt((t + gamma * t) ** 2 - t**2) * 1.003 if inside else 0.0
        assert row.std == pytest.approx(expected, rel=1e-9)
        assert row.draw == i


def test_one_step_goes_straight_to_zero():
    plan = Plan(samplers.edm(steps=1), EDM())
    assert plan.nfe == 1
    assert plan.sigmas == (pytest.approx(80.0),)
    assert plan.rows[1].op is Op.EULER
    assert plan.rows[1].h == pytest.approx(-80.0)


@pytest.mark.parametrize("pre", [VP(), VE(), IDDPM(), EDM(sigma_min=0.01, sigma_max=40)])
def test_sigmas_are_clamped_to_the_network(pre):
    plan = Plan(samplers.edm(steps=12, sigma_min=1e-6, sigma_max=1e6), pre)
    low, high = (pre.sigma_min, pre.sigma_max)
    assert plan.sigmas[0] == pytest.approx(high, rel=1e-12)
    assert min(plan.sigmas) == pytest.approx(low, rel=1e-12)


def test_iddpm_evaluates_only_at_its_levels():
    pre = IDDPM()
    sigmas = torch.tensor(Plan(samplers.edm(S_churn=20), pre).sigmas, dtype=torch.float64)
    assert torch.equal(pre.round_sigma(sigmas), sigmas)


def test_plans_are_values():
    plan, same, other = (Plan(samplers.edm(steps=n), EDM()) for n in (5, 5, 6))
    assert plan == same
    assert hash(plan) == hash(same)
    assert plan != other
    with pytest.raises(ValueError, match="read-only"):
        plan.table[0, 0] = 1
    text = str(plan)
    assert "9 network evaluations" in text
    assert "PREDICT" in text
    assert np.array_equal(plan.table[:, COLUMNS.index("sigma")][1:], plan.sigmas)


@dataclass(frozen=True)
class Handmade(Sampler):
    made: tuple[Row, ...]
    steps: int = 1

    def rows(self, preconditioning):
        return list(self.made)


BEGIN = Row(Op.BEGIN, begin_scale=2.0)
LINEAR = Row(Op.LINEAR, sigma=1.0, x_from_D=1.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row(Op.EULER, sigma=1.0, h=-1.0)], "one BEGIN row"),
        ([BEGIN, BEGIN], "one BEGIN row"),
        ([BEGIN], "one BEGIN row, its first, and then others"),
        (
            [BEGIN, Row(Op.EULER, sigma=1.0, h=1.0), Row(Op.EULER, sigma=2.0, h=-1.0)],
            "all steps go towards less noise, or",
        ),
        ([BEGIN, Row(Op.EULER, sigma=1.0, h=math.nan)], "h is nan; allowed: a finite number"),
        ([BEGIN, Row(Op.EULER, sigma=math.inf, h=-1.0)], "c_noise is inf; allowed: a finite number"),
        (
            [BEGIN, Row(Op.EULER, sigma=1.0, slope_t=0.0, h=-1.0)],
            r"^row 1 \(EULER\): slope_t is 0.0; allowed: a number other than 0$",
        ),
        (
            [BEGIN.then(std=-1.0), Row(Op.EULER, sigma=1.0, h=-1.0)],
            r"^row 0 \(BEGIN\): std is -1.0; allowed: a number from 0$",
        ),
        (
            [BEGIN, Row(Op.CORRECT, sigma=1.0, h=-1.0, w_0=0.5, w_1=0.5)],
            "followed by a CORRECT, and no other row is",
        ),
        (
            [BEGIN, Row(Op.PREDICT, sigma=2.0, h=-1.0), Row(Op.CORRECT, sigma=1.0, h=-1.0, w_0=0.5, w_1=0.6)],
            r"w_0 \+ w_1 is 1.1; allowed: 1, the sum of a corrected step's weights",
        ),
        ([BEGIN, Row(Op.PREDICT, sigma=2.0, h=-1.0)], "every PREDICT is followed by a CORRECT"),
        ([BEGIN, Row(Op.EULER, sigma=0.0, h=-1.0)], r"row 1 \(EULER\): sigma is 0.0; allowed: above 0"),
        ([BEGIN, Row(Op.EULER, h=-1.0)], r"row 1 \(EULER\): sigma is nan; allowed: above 0"),
        (
            [
                BEGIN,
                Row(Op.PREDICT, sigma=2.0, h=-1.0, std=0.5),
                Row(Op.CORRECT, sigma=1.0, h=-1.0, w_0=0.5, w_1=0.5),
            ],
            r"row 1 \(PREDICT\): std is 0.5, ratio 1.0; allowed: 0 and 1, as PREDICT adds no noise",
        ),
        *[
            (
                [BEGIN, LINEAR.then(**{slot: given})],
                f"{slot} is {given}; allowed: a slot, an integer from 0 to 3, or -1",
            )
            for slot, given in itertools.product(("keep_slot", "store_slot"), (0.5, -2, 4))
        ],
        *[
            ([BEGIN, LINEAR.then(draw=draw)], f"draw is {draw}; allowed: the index of a draw, an integer from 0 to 2")
            for draw in (-1, 0.5, 2**60)
        ],
        ([BEGIN, LINEAR.then(keep_slot=1, store_slot=1)], "keep_slot and store_slot are both 1; allowed: two slots"),
        ([BEGIN, LINEAR.then(s=0.0)], r"row 0 \(BEGIN\): s_next is 0.0; allowed: a number other than 0"),
        ([BEGIN, LINEAR.then(x_from_D=0.0)], r"every x_from_\* is 0; allowed: one or more that are not"),
    ],
)
def test_a_wrong_table_is_not_a_plan(rows, message):
    with pytest.raises(ValueError, match=message):
        Plan(Handmade(tuple(rows)), EDM())


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({"guide_F": 2.0}, r"^row 1 \(LINEAR\): guide_F is 2.0; allowed: 1 where guide_G is 0$"),
        ({"rescale": 1.5}, r"^row 1 \(LINEAR\): rescale is 1.5; allowed: a number from 0 to 1$"),
    ],
)
def test_a_wrong_guide_is_told_by_the_number_that_is_wrong(guide, message):
    with pytest.raises(ValueError, match=message):
        Plan(Handmade((BEGIN, LINEAR)), EDM()).guided(lambda sigma: guide)


def test_levels_may_rise_again():
    """Restart sampling: down, up by noise, and down again; Ralston's relatives evaluate at a step's end first."""
    rows = [LINEAR.then(sigma=sigma, x_from_x=0.5, draw=i) for i, sigma in enumerate((2.0, 1.0, 2.0, 0.5))]
    plan = Plan(Handmade((BEGIN, *rows)), EDM())
    assert plan.sigmas == (2.0, 1.0, 2.0, 0.5)
    assert plan.draws == 4


@dataclass(frozen=True)
class Empty(Sampler):
    steps: int = 1

    def rows(self, preconditioning):
        return None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Empty(), EDM()), r"rows of Empty is None; allowed: a list of engine\.plan\.Row"),
        ((Handmade((1,)), EDM()), r"rows of Handmade is \[1\]; allowed: a list of engine\.plan\.Row"),
        ((EDM(), samplers.edm()), r"sampler is EDM\(.*\); allowed: an engine\.Sampler with rows, which rk45 has not"),
        ((samplers.rk45(), EDM()), r"sampler is AdaptiveSampler\(.*\); allowed: an engine\.Sampler with rows, .*"),
        (
            (samplers.edm(), "EDM"),
            r"preconditioning is 'EDM'; allowed: one of engine\.preconditioning, such as EDM\(\)",
        ),
    ],
)
def test_what_is_no_sampler_or_preconditioning(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Plan(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: an integer from 1"),
        ({"steps": 2.5}, "steps is 2.5; allowed: an integer from 1"),
        ({"sigma_min": -1.0}, "sigma_min is -1.0; allowed: a finite number above 0"),
        ({"sigma_max": 0.001}, "sigma_max is 0.001; allowed: a finite number above sigma_min = 0.002"),
        ({"sigma_max": math.nan}, "sigma_max is nan"),
        ({"rho": 0}, "rho is 0; allowed"),
        ({"S_churn": -1}, "S_churn is -1; allowed: a number from 0"),
        ({"S_tmin": 2.0, "S_tmax": 1.0}, "S_tmax is 1.0; allowed: at least S_tmin = 2.0"),
        ({"solver": "rk4"}, "solver is 'rk4'; allowed: 'heun', 'euler'"),
    ],
)
def test_sampler_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        samplers.edm(**arguments)


def test_a_range_outside_the_network_is_refused():
    with pytest.raises(ValueError, match="sigma_min, sigma_max is"):
        Plan(samplers.edm(sigma_min=200, sigma_max=300), VE())
