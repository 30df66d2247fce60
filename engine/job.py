"""Job: what one call of ``sample`` asks for, checked before any work and cut into batches."""

import math
import numbers
import operator
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from . import noise as normals
from .allowed import is_integer, is_number, number
from .denoiser import Denoiser
from .noise import seed_bits
from .plan import Plan
from .state import Noise
from .torch_noise import ORDERS, TorchStream, require_distinct
from .transfer import to_device

Seeds = Sequence[int] | Tensor | range
NOISES = ("philox", *ORDERS)
_OFFSET_DRAW = 2**63 - 2  # of a seed: its offset noise, one number a channel
Labels = int | Sequence[int] | np.ndarray | Tensor | None


class Asked(TypedDict, total=False):
    """What one call asks for; `engine.sample` says what each is.

    With noise "torch" or "edm2", whose generators read a seed modulo 2**32, seeds must be distinct modulo 2**32.
    """

    seeds: Seeds | None
    latents: Tensor | None
    noise: str | Tensor
    class_labels: Labels
    image: Tensor | None
    mask: Tensor | None
    offset_noise: float


@dataclass(frozen=True)
class Job:
    """N samples: seeds or latents [N, C, *spatial], one-hot labels [N, label_dim], churn noise [draws, N, ...].

    positions: where each sample stands in what the caller asked for. stream: draws the seeds' noise instead of Philox.
    image [N, C, *spatial]: what to start from; image_scale brings it to the latents' units. mask: where to keep it.
    offset: standard deviation of noise that is the same for a whole channel of the latents.
    """

    positions: tuple[int, ...]
    shape: tuple[int, ...]
    seeds: tuple[int, ...] | None
    latents: Tensor | None
    noise: Tensor | None
    labels: Tensor | None
    stream: TorchStream | None = None
    image: Tensor | None = None
    image_scale: float = 1.0
    mask: Tensor | None = None
    offset: float = 0.0

    @classmethod
    def check(
        cls,
        denoiser: Denoiser,
        plan: Plan,
        device: torch.device,
        label_dim: int = 0,
        *,
        seeds: Seeds | None = None,
        latents: Tensor | None = None,
        noise: str | Tensor = "philox",
        class_labels: Labels = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        offset_noise: float = 0.0,
    ) -> "Job":
        """Raises ValueError in one line naming the argument, what was given and what is allowed.

        label_dim: the number of classes that something beside the denoiser knows, a classifier that guides it.
        """
        shape = denoiser.img_shape
        given = isinstance(class_labels, Tensor) and class_labels.is_floating_point()
        if not (denoiser.labels_are_classes or given):
            what = "None" if class_labels is None else f"a {type(class_labels).__name__}"
            raise ValueError(f"class_labels is {what}; allowed: embeddings, a float tensor [N, {denoiser.label_dim}]")
        checked_seeds = None if seeds is None else _seeds(seeds)
        count = _count(checked_seeds, latents, shape)
        if image is not None:
            require_images("image", image, shape, count)
        draws, stream = _noise(noise, plan, denoiser, checked_seeds, latents, count)
        if class_labels is None and stream is not None and checked_seeds is not None and denoiser.label_dim:
            class_labels = stream.labels(checked_seeds, shape, device)
        offset = number("offset_noise", offset_noise, "a number from 0 and finite", lambda v: 0 <= v < math.inf)
        if offset and checked_seeds is None:
            raise ValueError(f"offset_noise is {offset_noise!r}, which is drawn from seeds, and seeds is None")
        return cls(
            positions=tuple(range(count)),
            shape=shape,
            seeds=checked_seeds,
            latents=latents,
            noise=draws,
            labels=_labels(class_labels, count, denoiser.label_dim or label_dim, checked_seeds),
            stream=stream,
            image=image,
            image_scale=plan.s_begin / plan.rows[0].begin_scale,
            mask=_mask(mask, image, (count, *shape)),
            offset=float(offset),
        )

    def take(self, samples: Sequence[int]) -> "Job":
        """The job of some samples only."""
        # Those in a row without an index, which would have to be sent to the tensors' device.
        together = isinstance(samples, range) and samples.step == 1
        index = slice(samples.start, samples.stop) if together else list(samples)  # type: ignore[attr-defined]
        return replace(
            self,
            positions=tuple(self.positions[i] for i in samples),
            seeds=None if self.seeds is None else tuple(self.seeds[i] for i in samples),
            latents=None if self.latents is None else self.latents[index],
            noise=None if self.noise is None else self.noise[:, index],
            labels=None if self.labels is None else self.labels[index],
            image=None if self.image is None else self.image[index],
            mask=None if self.mask is None else self.mask[index],
        )

    def batch(self, number: int, size: int) -> "Job":
        """One of the jobs of ``size`` samples, the last one of fewer, that this one is cut into; see `places`."""
        return self.take(self.places(number, size))

    def places(self, number: int, size: int) -> range:
        """Where the samples of that one stand in this job. Raises ValueError for a number that none of them has."""
        every = math.ceil(len(self.positions) / size)
        if not is_integer(number, 0, every - 1):
            raise ValueError(f"batches contains {number!r}; allowed: 0 to {every - 1}")
        return range(number * size, min((number + 1) * size, len(self.positions)))

    def noise_on(self, device: torch.device) -> Noise:
        """Latents and churn noise of all samples, on ``device``."""

        def move(buffer: Tensor) -> Tensor:
            buffer = buffer if buffer.dtype in (torch.float32, torch.float64) else buffer.to(torch.float32)
            return to_device(buffer, device).contiguous()

        latents = None if self.latents is None else move(self.latents)
        eps = None if self.noise is None else move(self.noise)
        if self.stream is not None and self.seeds is not None:
            latents, eps = self.stream.draw(self.seeds, self.shape, device)
        if self.image is not None or self.offset:
            unit = normals.normal(self.seeds or (), 0, self.shape, device=device) if latents is None else latents
            latents = unit.double()
        if self.image is not None and latents is not None:
            latents = latents + to_device(self.image, device).to(torch.float64) * self.image_scale
        if self.offset and latents is not None:
            channels = normals.normal(self.seeds or (), _OFFSET_DRAW, self.shape[:1], device=device).double()
            latents = latents + self.offset * channels.reshape(*channels.shape, *[1] * (len(self.shape) - 1))
        seeds = None if self.seeds is None else to_device(seed_bits(self.seeds, "cpu"), device)
        return Noise(self.shape, seeds=seeds, latents=latents, eps=eps)

    def known_on(self, device: torch.device) -> Tensor | None:
        """The image where the mask is true, NaN elsewhere, float32."""
        if self.mask is None or self.image is None:
            return None
        image = to_device(self.image, device).to(torch.float32)
        return torch.where(to_device(self.mask, device), image, torch.nan).contiguous()

    def padded(self, size: int) -> "Job":
        """The job with its last sample again and again, ``size`` samples in all."""
        more = size - len(self.positions)
        if more == 0:
            return self

        def longer(t: Tensor | None, dim: int = 0) -> Tensor | None:
            # Not by an index, which would have to be sent to the tensor's device.
            return None if t is None else torch.cat([t, *[t.narrow(dim, t.shape[dim] - 1, 1)] * more], dim)

        return replace(
            self,
            positions=self.positions + self.positions[-1:] * more,
            seeds=None if self.seeds is None else self.seeds + self.seeds[-1:] * more,
            latents=longer(self.latents),
            noise=longer(self.noise, 1),
            labels=longer(self.labels),
            image=longer(self.image),
            mask=longer(self.mask),
        )

    def name(self, sample: int) -> str:
        """How to call a sample in a message."""
        return f"seed {self.seeds[sample]}" if self.seeds is not None else f"sample {self.positions[sample]}"


def require_known(function: str, given: Iterable[str], known: type) -> None:
    """Raises TypeError, as Python would, for a name that is none of a TypedDict's; function: what the caller called."""
    for name in given:
        if name not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def require_images(name: str, images: Tensor, shape: tuple[int, ...], count: int | None = None) -> None:
    """Raises ValueError for what is not [count, *shape], count None for any from 1, floating and finite."""
    if not isinstance(images, Tensor):
        raise ValueError(f"{name} is a {type(images).__name__}; allowed: a tensor [N, C, *spatial]")
    fits = images.dim() > 0 and tuple(images.shape) == (count or max(len(images), 1), *shape)
    if not fits:
        allowed = [count, *shape] if count else f"{['N', *shape]}, N from 1"
        raise ValueError(f"{name} has shape {list(images.shape)}; allowed: {allowed}")
    _require_finite(name, images)


def _require_finite(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name} is {values.dtype}; allowed: a floating tensor")
    # Of the extremes, for which no mask as large as the values is made.
    if values.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
        raise ValueError(f"{name} holds infinity or NaN; allowed: finite numbers")


def _count(seeds: tuple[int, ...] | None, latents: Tensor | None, shape: tuple[int, ...]) -> int:
    """How many samples are asked for."""
    if seeds is None and latents is None:
        raise ValueError("seeds and latents are both None; give one seed a sample, or latents [N, C, *spatial]")
    if latents is not None:
        require_images("latents", latents, shape, None if seeds is None else len(seeds))
        return len(latents)
    return len(seeds or ())


def _noise(
    noise: str | Tensor,
    plan: Plan,
    denoiser: Denoiser,
    seeds: tuple[int, ...] | None,
    latents: Tensor | None,
    count: int,
) -> tuple[Tensor | None, TorchStream | None]:
    """The caller's own noise, or the published stream that was named; neither for Philox."""
    if isinstance(noise, Tensor):
        allowed = [plan.draws, count, *denoiser.img_shape]
        if noise.dim() == 0 or noise.shape[0] < plan.draws or list(noise.shape[1:]) != allowed[1:]:
            raise ValueError(f"noise has shape {list(noise.shape)}; allowed: {allowed}, or more draws")
        _require_finite("noise", noise)
        return noise, None
    if not (isinstance(noise, str) and noise in NOISES):
        named = ", ".join(map(repr, NOISES))
        raise ValueError(f"noise is {noise!r}; allowed: {named} or a tensor [draws, N, C, *spatial]")
    if plan.stochastic and seeds is None:
        raise ValueError("seeds is None; a sampler that adds noise needs seeds, or a noise tensor")
    if noise not in ORDERS:
        return None, None
    if seeds is None or latents is not None:
        raise ValueError(f"noise is {noise!r}, which draws latents from seeds; allowed: seeds, and latents=None")
    require_distinct(noise, seeds)
    return None, TorchStream.of(noise, plan, denoiser.label_dim)


def _mask(mask: Tensor | None, image: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Expanded to the image's shape."""
    if mask is None:
        return None
    if image is None:
        raise ValueError("mask is given, and image is None; allowed: both, or no mask")
    try:
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            return mask.expand(shape)
    except RuntimeError:
        pass
    what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
    raise ValueError(f"mask is {what}; allowed: a bool tensor that broadcasts to {list(shape)}")


def _seeds(seeds: Seeds) -> tuple[int, ...]:
    try:
        values = seeds.tolist() if isinstance(seeds, Tensor) else tuple(seeds)
        checked = tuple(operator.index(seed) for seed in values)
    except TypeError:
        raise ValueError(f"seeds is {seeds!r}; allowed: a sequence of integers") from None
    if not checked:
        raise ValueError("seeds is empty; allowed: at least one seed")
    seen = set[int]()
    for given, seed in zip(values, checked, strict=True):
        if isinstance(given, bool) or not 0 <= seed < 2**64:  # a truth value has an index too
            raise ValueError(f"seeds contains {given}; allowed: integers in [0, 2**64)")
        if seed in seen:
            raise ValueError(f"seeds contains {seed} more than once; a seed is one image, so allowed: distinct seeds")
        seen.add(seed)
    return checked


def _labels(labels: Any, count: int, dim: int, seeds: tuple[int, ...] | None) -> Tensor | None:
    """One-hot or soft labels [N, dim] float32; where none are given, each seed draws its class."""
    if dim == 0:
        if labels is not None:
            raise ValueError(f"class_labels is {labels!r}; allowed: None, the network is unconditional")
        return None
    if labels is None:
        if seeds is None:
            raise ValueError(f"class_labels is None; without seeds allowed: an int below {dim}, N ints or [N, {dim}]")
        return _one_hot(normals.uniform_int(seeds, dim), dim)
    if isinstance(labels, np.ndarray):
        labels = torch.from_numpy(labels)
    if isinstance(labels, Tensor) and (labels.is_floating_point() or labels.dim() == 2):
        if labels.shape != (count, dim):
            kind = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
            raise ValueError(f"class_labels has shape {kind}; allowed: [{count}, {dim}], or integers [{count}]")
        if not bool(torch.isfinite(labels).all()):
            raise ValueError("class_labels holds infinity or NaN; allowed: finite numbers")
        return labels.to(torch.float32)
    values = labels.tolist() if isinstance(labels, Tensor) else labels
    each = list(values) if isinstance(values, Iterable) else [values] * count
    if not all(is_number(c, numbers.Integral) for c in each):
        allowed = f"an int, N ints or a tensor [N, {dim}]"
        raise ValueError(f"class_labels is {reprlib.repr(labels)}; allowed: {allowed}")
    index = [int(c) for c in each]
    if len(index) != count:
        raise ValueError(f"class_labels has {len(index)} entries; allowed: one int, or one a sample ({count})")
    for value in index:
        if not 0 <= value < dim:
            raise ValueError(f"class_labels contains {value}; allowed: 0 to {dim - 1}")
    return _one_hot(index, dim)


def _one_hot(index: Sequence[int], dim: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(list(index)), dim).to(torch.float32)
