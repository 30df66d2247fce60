"""Training objectives: the rows "training" of the EDM paper's Table 1, one record a column, and that of discrete time.

    loss = lambda(sigma) |D(y + n; sigma) - y|^2 with sigma ~ p_train and n ~ N(0, sigma^2 I)          (equation 2)

A loss belongs to one preconditioning: with its own weighting each asks the same of the network F at every noise level.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import preconditioning as pre
from ..denoiser import per_sample
from ..preconditioning import Preconditioning


class Loss(ABC):
    """p_train and lambda(sigma), and the preconditioning that they go with.

    traceable: whether torch.compile takes the whole loss. Where noise levels are looked up in a table, it would trace
    how the table is made.
    """

    preconditioning: Preconditioning
    traceable: ClassVar[bool] = True

    @abstractmethod
    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise levels [batch] drawn from p_train, float32."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma), float32 in sigma's shape."""

    def require(self, preconditioning: Preconditioning) -> None:
        """Raises ValueError for a network with another preconditioning than the one this loss goes with."""
        if preconditioning != self.preconditioning:
            raise ValueError(
                f"loss is {type(self).__name__} for a network with preconditioning {preconditioning}; "
                f"allowed: {self.preconditioning}"
            )

    def error(
        self,
        denoiser: nn.Module,
        images: Tensor,
        eps: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        augment: Tensor | None,
    ) -> Tensor:
        """|D(y + n; sigma) - y|^2 of each sample, [B] float32, averaged over its pixels; n = sigma eps."""
        noisy = images + eps * per_sample(sigma, images)
        return (denoiser(noisy, sigma, class_labels, augment) - images).square().flatten(1).mean(1)

    def __call__(
        self,
        denoiser: nn.Module,
        images: Tensor,
        eps: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        augment: Tensor | None,
    ) -> Tensor:
        """The weighted squared error of each sample, [B] float32, averaged over its pixels.

        images, eps [B, C, H, W]; class_labels [B, label_dim]; augment [B, AUGMENT_DIM]: what was done to the images.
        """
        error = self.error(denoiser, images, eps, sigma, class_labels, augment)
        return self.weight(sigma) * error


@dataclass(frozen=True)
class EDMLoss(Loss):
    """ln sigma ~ N(P_mean, P_std^2); lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    @property
    def preconditioning(self) -> pre.EDM:  # type: ignore[override]
        return pre.EDM(sigma_data=self.sigma_data)

    def require(self, preconditioning: Preconditioning) -> None:
        """As `Loss.require`; the range of sigma is for sampling, any goes."""
        same = isinstance(preconditioning, pre.EDM) and preconditioning.sigma_data == self.sigma_data
        super().require(self.preconditioning if same else preconditioning)

    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        return (torch.randn(batch, generator=generator) * self.P_std + self.P_mean).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class VPLoss(Loss):
    """t ~ U(epsilon_t, 1), sigma = sigma(t) of the VP schedule; lambda = 1 / sigma^2."""

    preconditioning: pre.VP = field(default_factory=pre.VP)

    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        p = self.preconditioning
        t = p.epsilon_t + (1 - p.epsilon_t) * _uniform(batch, generator)
        # Not p.sigma: it has the float32 rounding of the published range, 2% at the low end.
        return ((0.5 * p.beta_d * t + p.beta_min) * t).expm1().sqrt().float()

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


@dataclass(frozen=True)
class VELoss(Loss):
    """ln sigma ~ U(ln sigma_min, ln sigma_max); lambda = 1 / sigma^2."""

    preconditioning: pre.VE = field(default_factory=pre.VE)

    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        low, high = math.log(self.preconditioning.sigma_min), math.log(self.preconditioning.sigma_max)
        return (low + (high - low) * _uniform(batch, generator)).exp().float()

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


@dataclass(frozen=True)
class IDDPMLoss(Loss):
    """sigma = u_j, j ~ U{0, ..., M - 1}; lambda = 1 / sigma^2: L_simple of Nichol and Dhariwal 2021.

    Their second term, which trains the learned variances, is no part of Table 1; no sampler here reads them.
    """

    traceable = False
    preconditioning: pre.IDDPM = field(default_factory=pre.IDDPM)

    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        return self.preconditioning.levels()[torch.randint(self.preconditioning.M, [batch], generator=generator)]

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


@dataclass(frozen=True)
class DiscreteLoss(Loss):
    """t ~ U{1, ..., T}; lambda such that the loss is the mean squared error of what the network predicts.

    So |v - F|^2 for prediction "v" (Lin et al. 2024, section 3.3), where it asks something of the network at zero
    terminal SNR too: lambda = 1 + 1 / sigma^2 is 1 at infinite sigma. An epsilon there says nothing of y: refused.
    """

    traceable = False
    preconditioning: pre.Discrete = field(default_factory=lambda: pre.Discrete(prediction="v", zero_snr=True))

    def __post_init__(self) -> None:
        if self.preconditioning.zero_snr and self.preconditioning.prediction == "epsilon":
            raise ValueError("prediction is 'epsilon' with zero_snr; allowed to be trained: 'v', 'sample'")

    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(self.preconditioning.T, [batch], generator=generator)
        return self.preconditioning.levels()[index].float()

    def weight(self, sigma: Tensor) -> Tensor:
        of_y, of_n = {"epsilon": (0, 1), "v": (1, 1), "sample": (1, 0)}[self.preconditioning.prediction]
        return of_y + of_n / sigma**2

    def error(
        self,
        denoiser: nn.Module,
        images: Tensor,
        eps: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        augment: Tensor | None,
    ) -> Tensor:
        """As `Loss.error`, from s (y + n): finite where sigma is not, the network's own input."""
        s, s_sigma = 1 / (1 + sigma**2).sqrt(), 1 / (1 + sigma**-2).sqrt()
        noisy = images * per_sample(s, images) + eps * per_sample(s_sigma, images)
        return (denoiser(noisy, sigma, class_labels, augment, scaled=True) - images).square().flatten(1).mean(1)


def _uniform(batch: int, generator: torch.Generator) -> Tensor:
    """U[0, 1), float64: the steps of float32, 6e-8, would show at the lowest noise levels of VP, t = 1e-5."""
    return torch.rand(batch, generator=generator, dtype=torch.float64)


def loss_for(preconditioning: Preconditioning) -> Loss:
    """The published loss of a network with this preconditioning. Raises ValueError where there is none."""
    match preconditioning:
        case pre.EDM():
            return EDMLoss(sigma_data=preconditioning.sigma_data)
        case pre.VP():
            return VPLoss(preconditioning)
        case pre.VE():
            return VELoss(preconditioning)
        case pre.IDDPM():
            return IDDPMLoss(preconditioning)
        case pre.Discrete():
            return DiscreteLoss(preconditioning)
    raise ValueError(f"preconditioning is {preconditioning}; allowed, for a loss: EDM, VP, VE, IDDPM, Discrete")
