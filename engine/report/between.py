"""A part of the probability-flow ODE: what truncation errors and trajectories are measured with."""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch

from ..plan import Op, Row, Sampler
from ..preconditioning import Preconditioning
from ..samplers.edm import ode_step


@dataclass(frozen=True)
class Between(Sampler):
    """Heun's (or Euler's) steps with s = 1 from one noise level above 0 to another, as many as ``count``, evenly
    spaced in sigma^(1/rho). x starts as the latents that are given, unscaled."""

    sigma_from: float
    sigma_to: float
    count: int = 1
    rho: float = 7.0
    solver: Literal["heun", "euler"] = "heun"

    @property
    def steps(self) -> int:
        return self.count

    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        first, last = (sigma ** (1 / self.rho) for sigma in (self.sigma_from, self.sigma_to))
        inner = (torch.linspace(first, last, self.count + 1, dtype=torch.float64) ** self.rho).tolist()[1:-1]
        rows = [Row(Op.BEGIN, begin_scale=1.0)]
        for t, t_next in itertools.pairwise([self.sigma_from, *inner, self.sigma_to]):
            rows += ode_step(t, t_next, self.solver)
        return rows
