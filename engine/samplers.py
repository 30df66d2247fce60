"""Samplers: small frozen records of what the user chooses, each of which fills the rows of a `engine.Plan`."""

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .plan import Op, Row
from .preconditioning import Preconditioning


class Sampler(ABC):
    """What to compute, independent of any network; bound to one it compiles to the rows of a plan."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of steps; step i may draw churn noise i."""

    @abstractmethod
    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        """A BEGIN row, then one row per network evaluation."""


@dataclass(frozen=True)
class Churn:
    """The stochasticity of Algorithm 2: how much noise a step adds, where, and with which standard deviation."""

    S_churn: float = 0.0
    S_tmin: float = 0.0
    S_tmax: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("S_churn", "S_tmin", "S_tmax", "S_noise"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "a number from 0")
        _require("S_tmax", self.S_tmax, self.S_tmax >= self.S_tmin, f"at least S_tmin = {self.S_tmin}")

    def gamma(self, t: float, steps: int) -> float:
        return min(self.S_churn / steps, math.sqrt(2) - 1) if self.S_tmin <= t <= self.S_tmax else 0.0


@dataclass(frozen=True)
class EDMSteps:
    """Equation 5: sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, sigma_N = 0."""

    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _require("steps", self.steps, isinstance(self.steps, int) and self.steps >= 1, "an integer from 1")
        _require("sigma_min", self.sigma_min, 0 < self.sigma_min < math.inf, "a finite number above 0")
        finite = self.sigma_min < self.sigma_max < math.inf
        _require("sigma_max", self.sigma_max, finite, f"a finite number above sigma_min = {self.sigma_min}")
        _require("rho", self.rho, 0 < self.rho < math.inf, "a finite number above 0")

    def times(self, preconditioning: Preconditioning) -> Tensor:
        """t_0 > ... > t_{N-1} > t_N = 0, float64 [steps + 1], inside the network's range and on its noise levels."""
        lowest, highest = preconditioning.sigma_min, preconditioning.sigma_max
        low, high = max(self.sigma_min, lowest), min(self.sigma_max, highest)
        _require(
            "sigma_min, sigma_max",
            (self.sigma_min, self.sigma_max),
            low < high,
            f"a range in {lowest}..{highest}",
        )
        first, last = high ** (1 / self.rho), low ** (1 / self.rho)
        index = torch.arange(self.steps, dtype=torch.float64, device="cpu")
        t = (first + index / max(self.steps - 1, 1) * (last - first)) ** self.rho
        return torch.cat([preconditioning.round_sigma(t), torch.zeros(1, dtype=torch.float64, device="cpu")])


@dataclass(frozen=True)
class EDMSampler(Sampler):
    """Algorithm 2 of Karras et al. 2022 with sigma(t) = t and s(t) = 1; ``solver="euler"`` does not correct."""

    discretization: EDMSteps = field(default_factory=EDMSteps)
    churn: Churn = field(default_factory=Churn)
    solver: Literal["heun", "euler"] = "heun"

    def __post_init__(self) -> None:
        _require("solver", self.solver, self.solver in ("heun", "euler"), "'heun', 'euler'")

    @property
    def steps(self) -> int:
        return self.discretization.steps

    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        times = self.discretization.times(preconditioning).tolist()
        rows = [Row(Op.BEGIN, begin_scale=times[0])]
        for i, (t, t_next) in enumerate(itertools.pairwise(times)):
            gamma = self.churn.gamma(t, self.steps)
            t_hat = float(preconditioning.round_sigma(torch.tensor(t + gamma * t, dtype=torch.float64, device="cpu")))
            std = math.sqrt(t_hat * t_hat - t * t) * self.churn.S_noise
            rows[-1] = rows[-1].then(std=std, draw=i)
            h = t_next - t_hat
            if self.solver == "euler" or t_next == 0:
                rows.append(Row(Op.EULER, sigma=t_hat, slope_t=t_hat, h=h))
            else:
                rows.append(Row(Op.PREDICT, sigma=t_hat, slope_t=t_hat, h=h))
                rows.append(Row(Op.CORRECT, sigma=t_next, slope_t=t_next, h_predict=h, h=h, w_0=0.5, w_1=0.5))
        return rows


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
    return EDMSampler(EDMSteps(steps, sigma_min, sigma_max, rho), Churn(S_churn, S_tmin, S_tmax, S_noise), solver)


def _require(name: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
