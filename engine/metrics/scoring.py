"""Scores of samplers: images drawn from the same seeds by each, and measured while they are drawn."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine import Engine
from ..plan import Plan, Sampler
from ..run import Counted
from ..samplers import AdaptiveSampler
from .classifier import load_classifier
from .features import classifier_features
from .intervals import jackknife
from .quality import Quality
from .reference import reference_statistics


def draw_measured(
    engine: Engine,
    quality: Quality,
    labels: Tensor | None,
    known: bool = True,
    *,
    first: int = 0,
    sampler: Sampler | AdaptiveSampler | None = None,
    progress: bool = False,
    counted: Counted | None = None,
) -> tuple[Tensor, float]:
    """Draw quality.count seeds from ``first`` on and measure each: those recognised, and the seconds of drawing.

    labels: a class each, int64 [N], or None. Recognised, bool [N]: the shipped classifier sees the class asked for;
    none without labels or with ``known`` false, for images that are not Fashion-MNIST's. counted: see `Engine.stream`.
    """
    classifier = load_classifier()
    hits, seconds = torch.zeros(quality.count, dtype=torch.bool), 0.0
    batches = engine.stream(
        seeds=range(first, first + quality.count),
        class_labels=labels,
        sampler=sampler,
        progress=progress,
        counted=counted,
    )
    while True:
        started = time.perf_counter()
        positions, drawn = next(batches, ((), None))
        if drawn is None:
            return hits, seconds
        drawn = drawn.cpu()
        seconds += time.perf_counter() - started
        quality.add(positions, drawn)
        if known and labels is not None:
            at = list(positions)
            hits[at] = classifier.classify(drawn.clamp(-1, 1)) == labels[at]


@dataclass(frozen=True)
class Score:
    """What a sampler reached. distance: Frechet, with its 95% interval over seeds, low to high; without: what it is
    without each block of seeds. recognised: share of images. nfe: evaluations an image, as its plan says or, on
    average, as an adaptive solver counts them; a guided one is one. seconds: an image."""

    distance: float
    low: float
    high: float
    without: tuple[float, ...]
    recognised: float
    nfe: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"without": list(self.without)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Score":
        """What `as_json` gave, among other entries."""
        names = ("distance", "low", "high", "without", "recognised", "nfe", "seconds")
        return cls(**{name: record[name] for name in names} | {"without": tuple(record["without"])})

    def above(self, other: "Score") -> tuple[float, float]:
        """By how much this distance is above another's over the same seeds, and half the 95% interval of that.

        The interval is of the difference: what both share, an image's seed and the bias of few images, cancels.
        """
        pairs = zip(self.without, other.without, strict=True)
        return self.distance - other.distance, jackknife([mine - theirs for mine, theirs in pairs])


class Scorer:
    """Scores of samplers on one engine, against Fashion-MNIST's training images.

    Raises ValueError for a network of other images.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.extractor = engine, classifier_features()
        if engine.denoiser.img_shape != self.extractor.img_shape:
            shape = list(engine.denoiser.img_shape)
            raise ValueError(f"model draws images of {shape}; allowed: {list(self.extractor.img_shape or ())}")
        self.reference = reference_statistics("fashion-mnist-train", self.extractor)

    def __call__(self, sampler: Sampler | AdaptiveSampler, images: int, first: int = 0) -> Score:
        """Of as many images, from the seed ``first`` on, classes in turn."""
        quality = Quality(self.extractor, self.reference, images, keep=False)
        dim = self.engine.denoiser.label_dim
        labels = torch.arange(images) % dim if dim else None
        evaluations = torch.zeros(images, dtype=torch.int64)
        if isinstance(sampler, Sampler):
            evaluations[:] = Plan(sampler, self.engine.denoiser.preconditioning).nfe

        def counted(positions: tuple[int, ...], nfe: Tensor) -> None:
            evaluations[list(positions)] = nfe.cpu()

        hits, seconds = draw_measured(self.engine, quality, labels, sampler=sampler, first=first, counted=counted)
        distance, without = quality.distances()
        half = jackknife(without)
        share = hits.double().mean().item()
        per_image = (evaluations.double().mean().item(), seconds / images)
        return Score(distance, max(distance - half, 0.0), distance + half, tuple(without), share, *per_image)
