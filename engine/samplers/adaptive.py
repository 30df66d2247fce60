"""RK45, the adaptive baseline: no table of steps, because each sample finds its own."""

import math
from dataclasses import dataclass

from ..allowed import check_integers, check_numbers
from .edm import EDMSampler, edm
from .registry import listed


@dataclass(frozen=True)
class AdaptiveSampler:
    """See `rk45`; `engine.adaptive` runs it. Not a `Sampler`: it has no rows, is not fused and cannot be captured."""

    rtol: float = 1e-4
    atol: float = 1e-4
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    max_nfe: int = 10_000

    def __post_init__(self) -> None:
        low = self.sigma_min
        check_numbers(self, "rtol atol sigma_min", "a finite number above 0", lambda v: 0 < v < math.inf)
        check_numbers(self, "sigma_max", f"a finite number above sigma_min = {low}", lambda v: low < v < math.inf)
        check_integers(self, "max_nfe", 9)

    @property
    def ends(self) -> EDMSampler:
        """Two levels, sigma_max and sigma_min within the network's range: where the latents begin and the ODE ends."""
        return edm(steps=2, sigma_min=self.sigma_min, sigma_max=self.sigma_max, solver="euler")


@listed(
    source="Dormand, Prince 1980, RK5(4); the ODE baseline of Song et al. 2021 and of Karras et al. 2022, Figure 2",
    order="5, adaptive",
    evaluations="6",
    fused=False,
)
def rk45(
    rtol: float = 1e-4, atol: float = 1e-4, sigma_min: float = 0.002, sigma_max: float = 80.0, max_nfe: int = 10_000
) -> AdaptiveSampler:
    """The probability-flow ODE in sigma by Dormand-Prince with error control for each sample; then a step to 0.

    A step is accepted when the root mean square of error / (atol + rtol |x|) over the sample is below 1. The network
    sees float32, so tolerances far below 1e-6 gain nothing. A sample of more than max_nfe evaluations is an error.
    Raises ValueError naming a parameter out of range.
    """
    return AdaptiveSampler(rtol, atol, sigma_min, sigma_max, max_nfe)
