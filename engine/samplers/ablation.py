"""The general sampler of the EDM paper: Algorithms 1 and 2 with any sigma(t), s(t), discretization and alpha."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..allowed import check_numbers, require, require_read
from ..plan import Op, Row, Sampler
from ..preconditioning import Preconditioning
from .base import Churn
from .levels import Discretization, Levels, LinearSchedule, VESchedule, VPSchedule, require_levels
from .registry import listed

Schedule = LinearSchedule | VPSchedule | VESchedule


@dataclass(frozen=True)
class Scaling:
    """s(t): 1, or ("vp") 1 / sqrt(1 + sigma(t)^2), which keeps the variance of x. Elementwise, as the schedules are."""

    schedule: Schedule
    vp: bool

    def s(self, t: Tensor) -> Tensor:
        """The scale of x at time t, without unit."""
        return 1 / (1 + self.schedule.sigma(t) ** 2).sqrt() if self.vp else torch.ones_like(t)

    def s_deriv(self, t: Tensor) -> Tensor:
        """ds/dt: 0, or ("vp") -sigma sigma' s^3."""
        if not self.vp:
            return torch.zeros_like(t)
        return -self.schedule.sigma(t) * self.schedule.sigma_deriv(t) * self.s(t) ** 3


@dataclass(frozen=True)
class AblationSampler(Sampler):
    """See `ablation`."""

    levels: Levels = field(default_factory=Levels)
    churn: Churn = field(default_factory=Churn)
    solver: Literal["heun", "euler"] = "heun"
    schedule: Literal["linear", "vp", "ve"] = "linear"
    scaling: Literal["none", "vp"] = "none"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        require("solver", self.solver, self.solver in ("heun", "euler"), "'heun', 'euler'")
        require("schedule", self.schedule, self.schedule in ("linear", "vp", "ve"), "'linear', 'vp', 've'")
        require("scaling", self.scaling, self.scaling in ("none", "vp"), "'none', 'vp'")
        check_numbers(self, "alpha", "a number from 1e-6 to 1", lambda v: 1e-6 <= v <= 1)
        require("churn", self.churn, isinstance(self.churn, Churn), "samplers.Churn(...)")
        require_levels(self.levels, self)
        require_read({"alpha": {"solver": ("heun",)}}, self)

    @property
    def steps(self) -> int:
        return self.levels.steps

    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        sigmas = self.levels.finite_sigmas(preconditioning, "ablation")
        vp = self.levels.vp_schedule(preconditioning)
        schedules: dict[str, Schedule] = {"linear": LinearSchedule(), "vp": vp, "ve": VESchedule()}
        times = schedules[self.schedule]
        scaling = Scaling(times, self.scaling == "vp")
        t_steps = torch.cat([times.sigma_inv(sigmas[:-1]), sigmas[-1:]])
        begin = times.sigma(t_steps[0]) * scaling.s(t_steps[0])
        rows = [Row(Op.BEGIN, begin_scale=begin.item())]
        for i, (t, t_next) in enumerate(itertools.pairwise(t_steps)):
            sigma = times.sigma(t)
            gamma = self.churn.gamma(sigma.item(), self.steps)
            # Without churn t_hat is t. The published code sends it through sigma and back, and then adds noise of some
            # 1e-8 sigma, the rounding error: it is not deterministic where the paper is.
            t_hat = times.sigma_inv(preconditioning.round_sigma(sigma + gamma * sigma)) if gamma else t
            raised = (times.sigma(t_hat) ** 2 - sigma**2).clip(min=0).sqrt()
            std = raised * scaling.s(t_hat) * self.churn.S_noise
            ratio = scaling.s(t_hat) / scaling.s(t)
            rows[-1] = rows[-1].then(ratio=ratio.item(), std=std.item(), draw=i)
            rows += self._step(t_hat, t_next, scaling, last=i == self.steps - 1)
        return rows

    def _step(self, t_hat: Tensor, t_next: Tensor, scaling: Scaling, last: bool) -> list[Row]:
        """Algorithm 1's lines 4 to 8 from t_hat to t_next."""
        h = t_next - t_hat
        here = _slope(t_hat, scaling)
        if self.solver == "euler" or last:
            return [Row(Op.EULER, **here, h=h.item())]
        part = (self.alpha * h).item()
        there = _slope(t_hat + self.alpha * h, scaling)
        weights: dict[str, Any] = {"w_0": 1 - 1 / (2 * self.alpha), "w_1": 1 / (2 * self.alpha)}
        return [Row(Op.PREDICT, **here, h=part), Row(Op.CORRECT, **there, h_predict=part, h=h.item(), **weights)]


def _slope(t: Tensor, scaling: Scaling) -> dict[str, Any]:
    """dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D(x / s; sigma), equation 4 with the score as D."""
    sigma, sigma_deriv = scaling.schedule.sigma(t), scaling.schedule.sigma_deriv(t)
    s = scaling.s(t)
    return {
        "sigma": sigma.item(),
        "s": s.item(),
        "slope_x": (sigma_deriv / sigma + scaling.s_deriv(t) / s).item(),
        "slope_D": (sigma_deriv * s / sigma).item(),
    }


@listed(
    source="Karras et al. 2022, Algorithms 1 to 3 and Table 1",
    order="2 (heun), 1 (euler)",
    evaluations="2 (heun), 1 (euler)",
    stochastic="S_churn > 0",
)
def ablation(
    steps: int = 18,
    solver: Literal["heun", "euler"] = "heun",
    discretization: Discretization = "edm",
    schedule: Literal["linear", "vp", "ve"] = "linear",
    scaling: Literal["none", "vp"] = "none",
    alpha: float = 1.0,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = math.inf,
    S_noise: float = 1.0,
) -> AblationSampler:
    """Every combination of the paper's Table 1: discretization (`Levels`), schedule sigma(t), scaling s(t), solver.

    solver="heun" is the general second-order step of Algorithm 3: alpha = 1 Heun, 2/3 Ralston, 1/2 the midpoint method.
    A sigma range of None is the discretization's published one; it is clamped to the network's when a plan is built.
    Some parameters are read by some choices only: rho by discretization="edm", C_1, C_2 and M by "iddpm", epsilon_s by
    "vp" and by schedule="vp", alpha by solver="heun", the range by all but timesteps.
    Raises ValueError naming a parameter out of range, or changed where it is not read.
    """
    levels = Levels(steps, sigma_min, sigma_max, rho, discretization, epsilon_s, C_1, C_2, M)
    return AblationSampler(levels, Churn(S_churn, S_tmin, S_tmax, S_noise), solver, schedule, scaling, alpha)
