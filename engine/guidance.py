"""Guidance: a second evaluation G beside F, which says where to go further, or where not to.

    F' = guide_F * F + guide_G * G,  then F' * (rescale * std(F) / std(F') + 1 - rescale)          in the fused step

guide_F and guide_G are columns of the plan's table (`plan.Row`). So a weight changes without a new capture, samples of
one batch may have different ones (each is at a row of its own table), and an interval of noise levels costs nothing
outside it: rows with guide_G = 0 do not evaluate G at all.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .allowed import check_integers, is_integer, is_number, require
from .denoiser import Denoiser, per_sample
from .plan import Plan
from .state import Level

Weight = float | Sequence[float] | Tensor
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
LevelNow = Callable[[], Level]  # where each sample's evaluation stands
Own = TypeVar("Own", bound="Guidance")
_IN_THE_TABLE = ("weight", "interval", "rescale")
_HIGHEST = 1e6  # of weights: far beyond use, and products with it stay finite in float32


class _Same:
    """Equal to what holds the same object, or an equal number or string."""

    def __init__(self, value: object) -> None:
        self.value = value
        self._key = value if isinstance(value, int | float | str | None) else id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key and type(self.value) is type(other.value)

    def __hash__(self) -> int:
        return hash(self._key)


@dataclass(frozen=True)
class Guidance(ABC):
    """What all kinds share.

    weight: how far to go, or one a sample; see each kind for the weight that does nothing. interval: (lowest, highest)
    noise level at which to guide (Kynkaanniemi et al. 2024); none elsewhere. rescale: phi of Lin et al. 2024, section
    3.4, from 0 (off) to 1: gives the guided output the standard deviation, over a sample, of the plain one.
    Raises ValueError naming a parameter out of range.
    """

    weight: Weight
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0

    copies: ClassVar[int] = 1  # of the network input: 2 where both evaluations are one doubled batch
    neutral: ClassVar[float] = 1.0  # the weight that does nothing

    def __post_init__(self) -> None:
        if not all(is_number(w) and abs(w) <= _HIGHEST for w in self._weights()):
            raise ValueError(f"weight is {self.weight!r}; allowed: a number up to {_HIGHEST:g}, or one a sample")
        ends = self.interval if isinstance(self.interval, tuple | list) and len(self.interval) == 2 else (None, None)
        if not (is_number(ends[0]) and is_number(ends[1]) and 0 <= ends[0] <= ends[1]):
            raise ValueError(f"interval is {self.interval!r}; allowed: (lowest, highest) sigma, from 0")
        if not (is_number(self.rescale) and 0 <= self.rescale <= 1):
            raise ValueError(f"rescale is {self.rescale!r}; allowed: a number from 0 to 1")

    @property
    def label_dim(self) -> int:
        """How many classes it knows of itself, for a denoiser that knows none."""
        return 0

    def _weights(self) -> Sequence[Any]:
        weight = self.weight.tolist() if isinstance(self.weight, torch.Tensor | np.ndarray) else self.weight
        return weight if isinstance(weight, list | tuple) else [weight]

    def weights(self, count: int) -> list[float]:
        """One a sample. Raises ValueError if another number of them was given."""
        weights = [float(weight) for weight in self._weights()]
        if len(weights) not in (1, count):
            raise ValueError(f"weight has {len(weights)} entries; allowed: a number, or one a sample ({count})")
        return weights * count if len(weights) == 1 else weights

    def columns(self, weight: float, sigma: float) -> dict[str, float]:
        """The row of an evaluation at ``sigma``: guide_F, guide_G, rescale."""
        if weight == self.neutral or not self.interval[0] <= sigma <= self.interval[1]:
            return {}
        guide_F, guide_G = self.mix(weight)
        return {"guide_F": guide_F, "guide_G": guide_G, "rescale": self.rescale}

    def plans(self, plan: Plan, count: int) -> tuple[dict[float, Plan], list[float]]:
        """The plan with each weight, and the weight of each of ``count`` samples."""
        weights = self.weights(count)
        return {w: plan.guided(partial(self.columns, w)) for w in dict.fromkeys(weights)}, weights

    def mix(self, weight: float) -> tuple[float, float]:
        """guide_F and guide_G; by default those of D_G + weight * (D_F - D_G)."""
        return weight, 1 - weight

    @abstractmethod
    def check(self, denoiser: Denoiser) -> None:
        """Raises ValueError if it cannot guide this denoiser."""

    def labels(self, labels: Tensor | None) -> Tensor | None:
        """What `evaluate` is to be given as labels, [copies * B, label_dim], from those of the samples."""
        return labels

    def prepared(self: Own, prepare: Callable[[Denoiser], Denoiser]) -> Own:
        """With its own networks moved and cast as the engine's."""
        return self

    @property
    def baked(self) -> Hashable:
        """What of it a captured loop holds: its class and every field, but for those that are in the table, weight,
        interval and rescale. A kind whose other fields are data too says so here."""
        own = [field.name for field in fields(self) if field.name not in _IN_THE_TABLE]
        return type(self), *(_Same(getattr(self, name)) for name in own)

    @abstractmethod
    def evaluate(
        self, denoiser: Denoiser, net_in: Tensor, c_noise: Tensor, labels: Tensor | None, level: LevelNow
    ) -> tuple[Tensor, Tensor]:
        """F and G, in the dtype of F. net_in [copies * B, ...]; level(): where each sample's evaluation stands."""


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """D = D_negative + weight * (D - D_negative): Ho and Salimans 2022, whose w is weight - 1. weight = 1 is none.

    Both evaluations run in one doubled batch. negative: the class to move away from; None is no class at all (zero
    labels), which a network knows only if it was trained with label dropout.
    """

    negative: int | None = None
    copies: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative is not None:
            require("negative", self.negative, is_integer(self.negative, 0), "None, or a class from 0")
            object.__setattr__(self, "negative", int(self.negative))

    @property
    def baked(self) -> Hashable:
        return type(self)  # ``negative`` is in the labels

    def check(self, denoiser: Denoiser) -> None:
        dim = denoiser.label_dim
        if not dim:
            raise ValueError("guidance is ClassifierFree; allowed for conditional networks, and this one has no labels")
        negative = self.negative
        require("negative", negative, negative is None or negative < dim, f"None, or a class from 0 to {dim - 1}")
        if negative is not None and not denoiser.labels_are_classes:
            raise ValueError(f"negative is {negative}; allowed: None, for a network whose labels are embeddings")

    def labels(self, labels: Tensor | None) -> Tensor | None:
        assert labels is not None
        away = torch.zeros_like(labels)
        if self.negative is not None:
            away[:, self.negative] = 1
        return torch.cat([labels, away])

    def evaluate(
        self, denoiser: Denoiser, net_in: Tensor, c_noise: Tensor, labels: Tensor | None, level: LevelNow
    ) -> tuple[Tensor, Tensor]:
        F, G = denoiser.call_network(net_in, c_noise, labels).chunk(2)
        return F, G


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """D = D_guide + weight * (D - D_guide): Karras et al. 2024, a worse network as guide. weight = 1 is none.

    guide: trained less or smaller, of the same image shape and preconditioning; conditional or not.
    """

    guide: Denoiser | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.guide, Denoiser):
            raise ValueError(f"guide is {self.guide!r}; allowed: an engine.Denoiser")

    def check(self, denoiser: Denoiser) -> None:
        assert self.guide is not None
        for name in ("img_shape", "preconditioning", "net_channels"):
            theirs, ours = getattr(self.guide, name), getattr(denoiser, name)
            if theirs != ours:
                raise ValueError(f"guide has {name} {theirs}; allowed: that of the denoiser, {ours}")
        if self.guide.label_dim not in (0, denoiser.label_dim):
            raise ValueError(f"guide has label_dim {self.guide.label_dim}; allowed: 0 or {denoiser.label_dim}")

    def prepared(self, prepare: Callable[[Denoiser], Denoiser]) -> "AutoGuidance":
        assert self.guide is not None
        return replace(self, guide=prepare(self.guide))

    def evaluate(
        self, denoiser: Denoiser, net_in: Tensor, c_noise: Tensor, labels: Tensor | None, level: LevelNow
    ) -> tuple[Tensor, Tensor]:
        assert self.guide is not None
        F = denoiser.call_network(net_in, c_noise, labels)
        return F, self.guide.call_network(net_in, c_noise, labels).to(F.dtype)


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """D = D + weight * sigma^2 * gradient of log p(class | x; sigma): Dhariwal and Nichol 2021. weight = 0 is none.

    gradient(x, sigma, class_labels) -> [B, C, *spatial] float32, for x [B, C, *spatial] float32 = image + sigma noise
    and sigma, float32 [B]; class_labels float32 [B, label_dim]. `gradient_of` makes one of a classifier. classes: how
    many the classifier knows, where the denoiser knows none; the samples then have class labels for it alone.
    """

    gradient: Gradient | None = None
    classes: int = 0
    neutral: ClassVar[float] = 0.0

    @property
    def label_dim(self) -> int:
        return self.classes

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.gradient):
            raise ValueError(f"gradient is {self.gradient!r}; allowed: a function of (x, sigma, class_labels)")
        check_integers(self, "classes", 0)

    def columns(self, weight: float, sigma: float) -> dict[str, float]:
        columns = super().columns(weight, sigma)
        if columns and sigma == math.inf:
            raise ValueError(f"interval is {self.interval}; allowed, at zero terminal SNR: a finite one")
        return columns

    def mix(self, weight: float) -> tuple[float, float]:
        return 1.0, weight

    def check(self, denoiser: Denoiser) -> None:
        if self.classes and denoiser.label_dim not in (0, self.classes):
            raise ValueError(f"classes is {self.classes}; allowed: the denoiser's {denoiser.label_dim}, or 0")

    def evaluate(
        self, denoiser: Denoiser, net_in: Tensor, c_noise: Tensor, labels: Tensor | None, level: LevelNow
    ) -> tuple[Tensor, Tensor]:
        assert self.gradient is not None
        F = denoiser.call_network(net_in, c_noise, labels)
        channels, at = denoiser.img_shape[0], level()
        x = net_in[:, :channels].float() / per_sample(at.c_in, net_in.float())
        given = torch.zeros(len(x), 0, device=x.device) if labels is None else labels
        with torch.enable_grad():  # for gradients by autograd
            slope = self.gradient(x, at.sigma, given)
        slope = slope.detach() if isinstance(slope, Tensor) else slope
        if not isinstance(slope, Tensor) or slope.shape != x.shape:
            what = list(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
            raise ValueError(f"gradient returned {what}; allowed: a tensor {list(x.shape)}")
        G = torch.zeros_like(F)  # in units of F, of whose size it is whatever sigma: representable in half precision
        G[:, :channels] = (slope * per_sample(at.sigma**2 / at.c_out, x)).to(F.dtype)
        return F, G


def gradient_of(classifier: nn.Module) -> Gradient:
    """The gradient of log p(class | x) for a classifier called as ``classifier(x, sigma)`` -> logits [B, label_dim]."""

    def gradient(x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x, sigma, labels = x.clone().requires_grad_(), sigma.clone(), class_labels.clone()
            log_p = torch.log_softmax(classifier(x, sigma).float(), dim=1)
            if log_p.shape != labels.shape:
                classes = f"{log_p.shape[1]} classes, the samples' labels {labels.shape[1]}"
                raise ValueError(f"classifier knows {classes}; allowed: as many (ClassifierGuidance(classes=...))")
            (slope,) = torch.autograd.grad((log_p * labels).sum(), x)
        return slope

    return gradient


class UntrainedClassifier(nn.Module):
    """A small convolutional classifier with random weights, for "misguided" guidance: a gradient that knows nothing.

    What it improves or spoils at a given weight is what guidance does without information. Weights from ``seed``.
    """

    def __init__(self, channels: int, label_dim: int, seed: int = 0, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(channels, width, 3, padding=1)
            self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
            self.head = nn.Linear(width, label_dim)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = x / per_sample((sigma**2 + 0.25).sqrt(), x)
        features = nn.functional.silu(self.second(nn.functional.silu(self.first(x))))
        return self.head(features.mean((2, 3)))
