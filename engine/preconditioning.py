"""The four preconditionings of the EDM paper's Table 1, Discrete for networks of discrete time, and Direct for a
network that is already a denoiser.

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))          (equation 7)

A preconditioning is a small frozen record: it holds numbers, never tensors, so plans built from it can be hashed. What
it cannot be raises ValueError when it is made.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from . import discrete
from .allowed import check_integers, check_numbers, is_number, require, require_read

MOST_LEVELS = 100_000  # of discrete time: a checkpoint's config may ask for any number, and each is computed


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise for each sigma, float32, in sigma's shape and on its device."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Preconditioning(ABC):
    """How a network F becomes a denoiser D; sigma_min and sigma_max are the ends of the noise levels it supports."""

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Table 1, "network and preconditioning". sigma: float32, any shape."""

    def scaled_coefficients(self, sigma: Tensor) -> Coefficients:
        """The same for s x with s = 1 / sqrt(1 + sigma^2) in place of x: c_skip / s, c_out, c_in / s, c_noise."""
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        root = _sqrt(1 + sigma**2)
        return Coefficients(c_skip * root, c_out, c_in * root, c_noise)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level the network knows; the identity where it knows all of them."""
        return sigma


def require_preconditioning(given: object) -> None:
    """Raises ValueError for anything else, a class of one among it."""
    if not isinstance(given, Preconditioning):
        what = f"a {type(given).__name__}" if isinstance(given, torch.nn.Module) else repr(given)  # not pages of layers
        raise ValueError(f"preconditioning is {what}; allowed: one of engine.preconditioning, such as EDM()")


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded float32 square root; torch's own is an ulp off on CPUs where MKL takes a slower path."""
    return x.to(torch.float64).sqrt().to(x.dtype)


def _check_range(pre: Preconditioning) -> None:
    check_numbers(pre, "sigma_min", "a finite number from 0", lambda v: 0 <= v < math.inf)
    check_numbers(pre, "sigma_max", f"a number above sigma_min = {pre.sigma_min}", lambda v: v > pre.sigma_min)


@dataclass(frozen=True)
class EDM(Preconditioning):
    """Karras et al. 2022. sigma_data is the standard deviation of the training data."""

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _check_range(self)
        check_numbers(self, "sigma_data", "a number above 0 and finite", lambda v: 0 < v < math.inf)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2
        root = _sqrt(total)
        return Coefficients(
            c_skip=self.sigma_data**2 / total,
            c_out=sigma * self.sigma_data / root,
            c_in=1 / root,
            c_noise=sigma.log() / 4,
        )


@dataclass(frozen=True)
class VP(Preconditioning):
    """Variance preserving, Song et al. 2021. c_noise is the continuous time scaled to the trained steps M."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(self, "beta_d", "a number above 0 and finite", lambda v: 0 < v < math.inf)
        check_numbers(self, "beta_min", "a finite number from 0", lambda v: 0 <= v < math.inf)
        check_numbers(self, "epsilon_t", "a number between 0 and 1", lambda v: 0 < v < 1)
        check_integers(self, "M", 2)

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return self.sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return self.sigma(1.0)

    def sigma(self, t: float) -> float:
        """sigma(t) in float32, as the published networks have their range: 0.00098 and 152.17 by default."""
        time = torch.tensor(t, dtype=torch.float32, device="cpu")
        return _sqrt((0.5 * self.beta_d * time**2 + self.beta_min * time).exp() - 1).item()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """The time t with sigma(t) = sigma: the root of beta_d t^2 / 2 + beta_min t = ln(1 + sigma^2). Any shape."""
        return (_sqrt(self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()) - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_in = 1 / _sqrt(sigma**2 + 1)
        return Coefficients(torch.ones_like(sigma), -sigma, c_in, (self.M - 1) * self.sigma_inv(sigma))


@dataclass(frozen=True)
class VE(Preconditioning):
    """Variance exploding, Song et al. 2021."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _check_range(self)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (0.5 * sigma).log())


@dataclass(frozen=True)
class IDDPM(Preconditioning):
    """Improved DDPM, Nichol & Dhariwal 2021: M discrete noise levels u_j of the cosine schedule.

    The network may have more output channels than the image (its learned variances); only the first are read.
    """

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def __post_init__(self) -> None:
        check_numbers(self, "C_1", "a number between 0 and 1", lambda v: 0 < v < 1)
        check_numbers(self, "C_2", "a number above 0 and finite", lambda v: 0 < v < math.inf)
        check_integers(self, "M", 2, MOST_LEVELS)

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return self.levels()[self.M - 1].item()

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return self.levels()[0].item()

    def levels(self) -> Tensor:
        """u_0 > u_1 > ... > u_M = 0, float32 [M + 1]."""
        return torch.tensor(_iddpm_levels(self.C_1, self.C_2, self.M), dtype=torch.float32, device="cpu")

    def nearest(self, sigma: Tensor) -> Tensor:
        """The index j of the level nearest to each sigma, int64."""
        u = self.levels().to(sigma.device)
        return (sigma.to(torch.float32)[..., None] - u).abs().argmin(-1)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.levels().to(sigma.device)[self.nearest(sigma)].to(sigma.dtype)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_in = 1 / _sqrt(sigma**2 + 1)
        c_noise = (self.M - 1 - self.nearest(sigma)).to(torch.float32)
        return Coefficients(torch.ones_like(sigma), -sigma, c_in, c_noise)


@lru_cache(maxsize=8)
def _iddpm_levels(C_1: float, C_2: float, M: int) -> tuple[float, ...]:
    """The recursion of Table 1 (iDDPM, time steps), accumulated in float32 as the published networks have it."""
    j = torch.arange(M + 1, device="cpu")
    alpha_bar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2
    u = torch.zeros(M + 1, dtype=torch.float32, device="cpu")
    for i in range(M, 0, -1):
        u[i - 1] = _sqrt((u[i] ** 2 + 1) / (alpha_bar[i - 1] / alpha_bar[i]).clip(min=C_1) - 1)
    return tuple(u.tolist())


@dataclass(frozen=True)
class Discrete(Preconditioning):
    """A model of T discrete timesteps (`engine.discrete`), called with s x, s = 1 / sqrt(1 + sigma^2), and t - 1.

    prediction: what the network was trained to return: "epsilon" (the noise), "v" (s n - s sigma y, Salimans and Ho
    2022) or "sample" (y). zero_snr: the schedule rescaled to zero terminal SNR; sigma_max is then infinite, where an
    epsilon says nothing of y: a plan that visits it with one is refused. betas: beta_1 .. beta_T themselves, float32
    values, instead of ``schedule`` and ``scale``, which then keep their defaults.
    """

    schedule: discrete.Schedule = "linear"
    T: int = 1000
    scale: float = 1.0
    zero_snr: bool = False
    prediction: Literal["epsilon", "v", "sample"] = "epsilon"
    betas: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        schedules = get_args(discrete.Schedule)
        require("schedule", self.schedule, self.schedule in schedules, ", ".join(map(repr, schedules)))
        known = self.prediction in ("epsilon", "v", "sample")
        require("prediction", self.prediction, known, "'epsilon', 'v', 'sample'")
        require("zero_snr", self.zero_snr, isinstance(self.zero_snr, bool), "True, False")
        check_integers(self, "T", 2, MOST_LEVELS)
        check_numbers(self, "scale", "a number above 0, up to 1", lambda v: 0 < v <= 1)
        if self.betas is not None:
            require("betas", self.betas, isinstance(self.betas, Iterable), f"T = {self.T} numbers between 0 and 1")
            object.__setattr__(self, "betas", tuple(self.betas))  # a list out of a config: the record must hash
            if not (len(self.betas) == self.T and all(is_number(beta) and 0 < beta < 1 for beta in self.betas)):
                raise ValueError(f"betas has {len(self.betas)} entries; allowed: T = {self.T} of them, between 0 and 1")
        require_read({name: {"betas": (None,)} for name in ("schedule", "scale")}, self)
        self.levels()

    def levels(self) -> Tensor:
        """sigma_1 < ... < sigma_T, float64 [T]."""
        levels = _discrete_levels(self.schedule, self.T, self.scale, self.zero_snr, self.betas)
        return torch.tensor(levels, dtype=torch.float64, device="cpu")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return self.levels()[0].item()

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return self.levels()[-1].item()

    def nearest(self, sigma: Tensor) -> Tensor:
        """t - 1 of the level nearest to each sigma, int64; infinity is nearest to infinity."""
        levels = self.levels().to(sigma.device)
        middles = (levels[1:] + levels[:-1]) / 2
        if self.zero_snr:
            middles[-1] = math.inf  # only infinity itself
        return torch.searchsorted(middles, sigma.to(torch.float64).contiguous(), right=True)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        rounded = self.levels().to(sigma.device)[self.nearest(sigma)].to(sigma.dtype)
        return torch.where(sigma == 0, sigma, rounded)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_skip, c_out, c_in, c_noise = self.scaled_coefficients(sigma)
        s = 1 / _sqrt(1 + sigma**2)
        return Coefficients(c_skip * s, c_out, c_in * s, c_noise)

    def scaled_coefficients(self, sigma: Tensor) -> Coefficients:
        root = _sqrt(1 + sigma**2)
        one, s = torch.ones_like(sigma), 1 / root
        noise = torch.where(sigma.isinf(), one, sigma / root)  # s sigma
        c_skip, c_out = {"epsilon": (root, -sigma), "v": (s, -noise), "sample": (one * 0, one)}[self.prediction]
        return Coefficients(c_skip, c_out, one, self.nearest(sigma).to(torch.float32))


@lru_cache(maxsize=8)
def _discrete_levels(
    schedule: discrete.Schedule, T: int, scale: float, zero_snr: bool, given: tuple[float, ...] | None
) -> tuple[float, ...]:
    named = given is None
    betas = discrete.betas(schedule, T, scale) if named else torch.tensor(given, dtype=torch.float32, device="cpu")
    return tuple(discrete.sigma(discrete.alpha_bar(discrete.zero_terminal_snr(betas) if zero_snr else betas)).tolist())


@dataclass(frozen=True)
class Direct(Preconditioning):
    """The network is itself a denoiser, D(x; sigma) = F(x; sigma): closed-form denoisers, wrapped foreign models."""

    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self) -> None:
        _check_range(self)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(torch.zeros_like(sigma), one, one, sigma)
