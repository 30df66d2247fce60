"""ODE inversion: the probability-flow ODE from images to the latents that draw them."""

import itertools
from dataclasses import dataclass, field
from typing import Literal

from ..allowed import require
from ..plan import Op, Row, Sampler
from ..preconditioning import Preconditioning
from .edm import EDMSampler, ode_step
from .levels import Levels, require_levels


@dataclass(frozen=True)
class InversionSampler(Sampler):
    """`EDMSampler` without churn, run from sigma_min up to sigma_max: x starts as the image and ends as sigma_max z."""

    levels: Levels = field(default_factory=Levels)
    solver: Literal["heun", "euler"] = "heun"

    def __post_init__(self) -> None:
        require("solver", self.solver, self.solver in ("heun", "euler"), "'heun', 'euler'")
        require_levels(self.levels, self)
        require("steps", self.levels.steps, self.levels.steps >= 2, "an integer from 2, to rise from one to another")

    @classmethod
    def of(cls, sampler: object) -> "InversionSampler":
        """The inverse of a deterministic sampler. Raises ValueError for one that adds noise."""
        if not isinstance(sampler, EDMSampler) or sampler.churn.S_churn != 0 or sampler.levels.steps < 2:
            what = str(sampler)
            if isinstance(sampler, EDMSampler):
                what = f"edm(S_churn={sampler.churn.S_churn}, steps={sampler.levels.steps})"
            raise ValueError(f"sampler is {what}; allowed: samplers.edm with S_churn=0 and steps from 2")
        return cls(sampler.levels, sampler.solver)

    @property
    def steps(self) -> int:
        return self.levels.steps - 1

    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        rising = self.levels.finite_sigmas(preconditioning, "the inversion").tolist()[-2::-1]  # without the 0
        rows = [Row(Op.BEGIN, begin_scale=1.0)]
        for t, t_next in itertools.pairwise(rising):
            rows += ode_step(t, t_next, self.solver)
        return rows
