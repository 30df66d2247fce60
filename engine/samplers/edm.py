"""The EDM sampler: Algorithm 2 of Karras et al. 2022."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..allowed import require
from ..plan import Op, Row, Sampler
from ..preconditioning import Preconditioning
from .base import Churn
from .levels import Levels, require_levels
from .registry import listed


@dataclass(frozen=True)
class EDMSampler(Sampler):
    """Algorithm 2 of Karras et al. 2022 with sigma(t) = t and s(t) = 1; ``solver="euler"`` does not correct."""

    levels: Levels = field(default_factory=Levels)
    churn: Churn = field(default_factory=Churn)
    solver: Literal["heun", "euler"] = "heun"

    def __post_init__(self) -> None:
        require("solver", self.solver, self.solver in ("heun", "euler"), "'heun', 'euler'")
        require("churn", self.churn, isinstance(self.churn, Churn), "samplers.Churn(...)")
        require_levels(self.levels, self)

    @property
    def steps(self) -> int:
        return self.levels.steps

    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        times = self.levels.finite_sigmas(preconditioning, "edm").tolist()
        rows = [Row(Op.BEGIN, begin_scale=times[0])]
        for i, (t, t_next) in enumerate(itertools.pairwise(times)):
            gamma = self.churn.gamma(t, self.steps)
            t_hat = float(preconditioning.round_sigma(torch.tensor(t + gamma * t, dtype=torch.float64, device="cpu")))
            std = math.sqrt(t_hat * t_hat - t * t) * self.churn.S_noise
            rows[-1] = rows[-1].then(std=std, draw=i)
            rows += ode_step(t_hat, t_next, self.solver)
        return rows


def ode_step(t: float, t_next: float, solver: Literal["heun", "euler"]) -> list[Row]:
    """One step of dx/dt = (x - D) / t from t to t_next, in either direction; to 0 there is nothing to correct with."""
    h = t_next - t
    if solver == "euler" or t_next == 0:
        return [Row(Op.EULER, sigma=t, slope_t=t, h=h)]
    predict = Row(Op.PREDICT, sigma=t, slope_t=t, h=h)
    return [predict, Row(Op.CORRECT, sigma=t_next, slope_t=t_next, h_predict=h, h=h, w_0=0.5, w_1=0.5)]


@listed(
    source="Karras et al. 2022, Algorithm 2",
    order="2 (heun), 1 (euler)",
    evaluations="2 (heun), 1 (euler)",
    stochastic="S_churn > 0",
)
def edm(
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = math.inf,
    S_noise: float = 1.0,
    solver: Literal["heun", "euler"] = "heun",
) -> EDMSampler:
    """The EDM sampler (Karras et al. 2022, Algorithm 2); NFE = 2 steps - 1 with Heun, steps with Euler.

    sigma_min and sigma_max are clamped to the network's range when a plan is built. S_churn = 0 is deterministic.
    Raises ValueError naming a parameter out of range.
    """
    return EDMSampler(Levels(steps, sigma_min, sigma_max, rho), Churn(S_churn, S_tmin, S_tmax, S_noise), solver)
