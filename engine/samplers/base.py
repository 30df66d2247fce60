"""What samplers share: the churn of Algorithm 2."""

import math
from dataclasses import dataclass

from ..allowed import check_numbers, require


@dataclass(frozen=True)
class Churn:
    """The stochasticity of Algorithm 2: how much noise a step adds, where, and with which standard deviation."""

    S_churn: float = 0.0
    S_tmin: float = 0.0
    S_tmax: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "S_churn S_tmin S_tmax", "a number from 0", lambda v: v >= 0)
        check_numbers(self, "S_noise", "a finite number from 0", lambda v: 0 <= v < math.inf)
        require("S_tmax", self.S_tmax, self.S_tmax >= self.S_tmin, f"at least S_tmin = {self.S_tmin}")

    def gamma(self, sigma: float, steps: int) -> float:
        """By what share of sigma a step out of ``steps`` raises it before it goes down, from 0 to sqrt(2) - 1."""
        return min(self.S_churn / steps, math.sqrt(2) - 1) if self.S_tmin <= sigma <= self.S_tmax else 0.0
