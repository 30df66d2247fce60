"""Discretizations: which noise levels a sampler visits (Table 1 of the EDM paper, "time steps")."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import discrete
from ..allowed import ReadBy, check_integers, check_numbers, is_number, number, require, require_read
from ..preconditioning import MOST_LEVELS, Discrete, Preconditioning

Discretization = Literal["edm", "vp", "ve", "iddpm", "leading", "linspace", "trailing"]
_F64 = torch.float64
_RANGED = ("edm", "vp", "ve", "iddpm")
# The parameters that not every discretization reads, and which do.
_READ_BY: ReadBy = {
    "sigma_min": {"discretization": _RANGED},
    "sigma_max": {"discretization": _RANGED},
    "rho": {"discretization": ("edm",)},
    "C_1": {"discretization": ("iddpm",)},
    "C_2": {"discretization": ("iddpm",)},
    "M": {"discretization": ("iddpm",)},
    "offset": {"discretization": ("leading",)},
}
# Read by `vp_schedule`, which `ablation` may take its sigma(t) from on any levels: so the sampler is asked too.
_READ_BY_SAMPLER: ReadBy = {"epsilon_s": {"discretization": ("vp",), "schedule": ("vp",)}}
_MOST_RHO = 1e9  # beyond, what tells sigma^(1/rho) from 1 is lost in a float64


@dataclass(frozen=True)
class Levels:
    """N noise levels from sigma_max down to sigma_min, then 0.

    edm: equation 5, evenly spaced in sigma^(1/rho). vp: evenly spaced times of the VP schedule that spans the range,
    from 1 to epsilon_s. ve: geometric. iddpm: every so many of the cosine schedule's M levels (C_1, C_2).
    leading, linspace, trailing: timesteps of a discrete-time model (`preconditioning.Discrete`), whose range they take;
    offset moves all of leading's towards noise.
    A range of None is the published one: edm 0.002 to 80, vp 0.0105 to 152.2, ve 0.02 to 100, iddpm 0.002 to 81.
    It is clamped to the network's own when a plan is built. Raises ValueError naming a parameter out of range, or one
    that the discretization does not read and that is not its default.
    """

    steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    discretization: Discretization = "edm"
    epsilon_s: float = 1e-3
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    offset: int = 0

    def __post_init__(self) -> None:
        check_integers(self, "steps", 1, MOST_LEVELS)  # a table of so many takes ten seconds to make
        choices = get_args(Discretization)
        require("discretization", self.discretization, self.discretization in choices, ", ".join(map(repr, choices)))
        check_numbers(self, "rho C_2", "a finite number above 0", lambda v: 0 < v < math.inf)
        check_numbers(self, "C_1", "a number between 0 and 1", lambda v: 0 < v < 1)
        check_numbers(self, "epsilon_s", "a number from 1e-9, below 1", lambda v: 1e-9 <= v < 1)
        check_integers(self, "M", 2, MOST_LEVELS)
        check_integers(self, "offset", 0)
        low, high = self._asked()
        low = number("sigma_min", low, "a finite number above 0", lambda v: 0 < v < math.inf)
        high = number("sigma_max", high, f"a finite number above sigma_min = {low}", lambda v: low < v < math.inf)
        object.__setattr__(self, "sigma_min", None if self.sigma_min is None else low)
        object.__setattr__(self, "sigma_max", None if self.sigma_max is None else high)
        require_read(_READ_BY, self)

    def _asked(self) -> tuple[float, float]:
        vp = VPSchedule(19.9, 0.1)
        low, high = {
            "edm": (0.002, 80.0),
            "vp": (vp.sigma(_scalar(self.epsilon_s)).item(), vp.sigma(_scalar(1.0)).item()),
            "ve": (0.02, 100.0),
            "iddpm": (0.002, 81.0),
        }.get(self.discretization, (0.002, 80.0))
        return (
            low if self.sigma_min is None else self.sigma_min,
            high if self.sigma_max is None else self.sigma_max,
        )

    def span(self, preconditioning: Preconditioning) -> tuple[float, float]:
        """(sigma_min, sigma_max) within what the network supports."""
        asked = self._asked()
        lowest, highest = preconditioning.sigma_min, preconditioning.sigma_max
        low, high = max(asked[0], lowest), min(asked[1], highest)
        require("sigma_min, sigma_max", asked, low < high, f"a range in {lowest}..{highest}")
        return low, high

    def vp_schedule(self, preconditioning: Preconditioning) -> "VPSchedule":
        """The VP schedule whose sigma is sigma_max at time 1 and sigma_min at time epsilon_s."""
        low, high = (math.log(sigma**2 + 1) for sigma in self.span(preconditioning))
        beta_d = 2 * (low / self.epsilon_s - high) / (self.epsilon_s - 1)
        return VPSchedule(beta_d, high - 0.5 * beta_d)

    @property
    def timesteps(self) -> bool:
        """Whether the levels are timesteps of a discrete-time model."""
        return self.discretization in get_args(discrete.Spacing)

    def finite_sigmas(self, preconditioning: Preconditioning, sampler: str) -> Tensor:
        """`sigmas` for a sampler that cannot start from infinite sigma. Raises ValueError naming it if it had to."""
        sigmas = self.sigmas(preconditioning)
        allowed = f"finite sigma; {sampler} has no form at zero terminal SNR"
        require("discretization", self.discretization, bool(sigmas[0] < math.inf), allowed)
        return sigmas

    def sigmas(self, preconditioning: Preconditioning) -> Tensor:
        """sigma_0 > ... > sigma_{N-1} > sigma_N = 0, float64 [steps + 1], on levels the network knows."""
        if self.timesteps:
            return self._at_timesteps(preconditioning)
        low, high = self.span(preconditioning)
        index = torch.arange(self.steps, dtype=_F64, device="cpu")
        last = max(self.steps - 1, 1)  # one step goes from sigma_max to 0; the published code divides by zero
        if self.discretization == "vp":
            times = 1 + index / last * (self.epsilon_s - 1)
            sigmas = self.vp_schedule(preconditioning).sigma(times)
        elif self.discretization == "ve":
            sigmas = (high**2 * (low**2 / high**2) ** (index / last)).sqrt()
        elif self.discretization == "iddpm":
            u = torch.tensor(_cosine_levels(self.C_1, self.C_2, self.M), dtype=_F64, device="cpu")
            u = u[(u >= low) & (u <= high)]
            require("steps", self.steps, self.steps <= len(u), f"at most the {len(u)} levels of iddpm in the range")
            sigmas = u[((len(u) - 1) / last * index).round().to(torch.int64)]
        else:
            least = _least_rho(low, high)
            allowed = f"{least:g} to {_MOST_RHO:g} for levels from {high:g} to {low:g}"
            require("rho", self.rho, least <= self.rho <= _MOST_RHO, allowed)
            first = high ** (1 / self.rho)
            sigmas = (first + index / last * (low ** (1 / self.rho) - first)) ** self.rho
        return torch.cat([preconditioning.round_sigma(sigmas), torch.zeros(1, dtype=_F64, device="cpu")])

    def _at_timesteps(self, preconditioning: Preconditioning) -> Tensor:
        network = isinstance(preconditioning, Discrete)
        others = f"edm, vp, ve, iddpm with {type(preconditioning).__name__}; this one with Discrete"
        require("discretization", self.discretization, network, others)
        assert isinstance(preconditioning, Discrete)
        spacing: discrete.Spacing = self.discretization  # type: ignore[assignment]
        chosen = discrete.timesteps(preconditioning.T, self.steps, spacing, self.offset)
        sigmas = preconditioning.levels()[torch.tensor(chosen, device="cpu") - 1]
        says = preconditioning.prediction != "epsilon" or bool(sigmas.isfinite().all())
        require("prediction", preconditioning.prediction, says, "'v', 'sample', to start from zero terminal SNR")
        return torch.cat([sigmas, torch.zeros(1, dtype=_F64, device="cpu")])


@dataclass(frozen=True, init=False)
class GivenLevels(Levels):
    """Noise levels of one's own, for any sampler: ``dataclasses.replace(samplers.edm(), levels=GivenLevels(...))``.

    sigmas: two or more, falling, without the 0 at the end. A network of discrete levels is evaluated at the nearest.
    Raises ValueError for others; a plan does for levels that the network does not have or does not tell apart. They
    decide every field, so dataclasses.replace, which comes here with all of them, is a TypeError.
    """

    given: tuple[float, ...] = ()

    def __init__(self, sigmas: Sequence[float] | Tensor = (), **others: object) -> None:
        if others:
            alone = "sigmas alone; in place of dataclasses.replace make another, GivenLevels(sigmas)"
            raise TypeError(f"GivenLevels() does not take {', '.join(others)}; allowed: {alone}")
        listed = sigmas.tolist() if isinstance(sigmas, Tensor) else sigmas
        given = tuple(listed) if isinstance(listed, Iterable) else ()
        positive = len(given) >= 2 and all(is_number(sigma) and 0 < sigma < math.inf for sigma in given)
        falling = positive and all(here > there for here, there in itertools.pairwise(given))
        require("sigmas", listed, falling, "two or more falling numbers above 0, the 0 at the end left out")
        object.__setattr__(self, "given", tuple(float(sigma) for sigma in given))
        super().__init__(len(given), self.given[-1], self.given[0])

    def sigmas(self, preconditioning: Preconditioning) -> Tensor:
        lowest, highest = preconditioning.sigma_min, preconditioning.sigma_max
        sigmas = preconditioning.round_sigma(torch.tensor(self.given, dtype=_F64, device="cpu"))
        slack = 1 + 1e-6  # the ends of a range that was computed, equation 5 say, are off by rounding
        inside = lowest <= self.given[-1] * slack and self.given[0] <= highest * slack
        apart = bool((sigmas.diff() < 0).all())
        allowed = f"from {lowest:.6g} to {highest:.6g}, no two of which the network rounds to one"
        require("sigmas", self.given, inside and apart, allowed)
        return torch.cat([sigmas, torch.zeros(1, dtype=_F64, device="cpu")])


def require_levels(levels: object, sampler: Any) -> None:
    """For the record of a sampler: raises ValueError for what are no `Levels`, or have what nothing in it reads."""
    require("levels", levels, isinstance(levels, Levels), "samplers.Levels(...), samplers.GivenLevels([80.0, ...])")
    require_read(_READ_BY_SAMPLER, levels, sampler)


def _least_rho(low: float, high: float) -> float:
    """The smallest rho with which a float64 has equation 5, in thousandths.

    sigma_min^(1/rho) is then at least 2^-45 of sigma_max^(1/rho), from which it is subtracted, and both are within
    2^+-1000.
    """
    low, high = math.log2(low), math.log2(high)
    return math.ceil(max(1000 / 45 * (high - low), abs(low), abs(high))) / 1000


@dataclass(frozen=True)
class VPSchedule:
    """sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t).

    This and the other schedules take and return float64 tensors of any shape, elementwise; t has no unit.
    """

    beta_d: float
    beta_min: float

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time t."""
        return (math.e ** (0.5 * self.beta_d * t**2 + self.beta_min * t) - 1) ** 0.5

    def sigma_deriv(self, t: Tensor) -> Tensor:
        """dsigma/dt = (beta_min + beta_d t) (sigma + 1 / sigma) / 2."""
        return 0.5 * (self.beta_min + self.beta_d * t) * (self.sigma(t) + 1 / self.sigma(t))

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma: the positive root of the equation above."""
        return ((self.beta_min**2 + 2 * self.beta_d * (sigma**2 + 1).log()).sqrt() - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class VESchedule:
    """sigma(t) = sqrt(t)."""

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time t."""
        return t.sqrt()

    def sigma_deriv(self, t: Tensor) -> Tensor:
        """dsigma/dt = 1 / (2 sqrt(t))."""
        return 0.5 / t.sqrt()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma: sigma^2."""
        return sigma**2


@dataclass(frozen=True)
class LinearSchedule:
    """sigma(t) = t."""

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time t: t itself."""
        return t

    def sigma_deriv(self, t: Tensor) -> Tensor:
        """dsigma/dt = 1."""
        return torch.ones_like(t)

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma: sigma itself."""
        return sigma


@lru_cache(maxsize=8)
def _cosine_levels(C_1: float, C_2: float, M: int) -> tuple[float, ...]:
    """u_0 > ... > u_M = 0 of iDDPM's cosine schedule in float64, from alpha_bar in float32 as in the published code."""
    alpha_bar = [(0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2 for j in torch.arange(M + 1, device="cpu")]
    u = torch.zeros(M + 1, dtype=_F64, device="cpu")
    for i in range(M, 0, -1):
        u[i - 1] = ((u[i] ** 2 + 1) / (alpha_bar[i - 1] / alpha_bar[i]).clip(min=C_1) - 1).sqrt()
    return tuple(u.tolist())


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=_F64, device="cpu")
