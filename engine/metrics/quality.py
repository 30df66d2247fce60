"""Quality of a set of generated images, measured while they are drawn: nothing is kept of them but their features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .features import FeatureExtractor
from .frechet import frechet_distance
from .inception_score import ClassSums
from .intervals import BLOCKS, blocks_of, jackknife, means_without
from .manifolds import precision_recall
from .statistics import Statistics

FEWEST = 2 * BLOCKS  # images of which intervals can be given


@dataclass(frozen=True)
class Measure:
    """A figure, and its 95% interval over seeds if it has one; or why it is ``missing``."""

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    missing: str = ""

    @classmethod
    def over_blocks(cls, name: str, value: float, without: Sequence[float], highest: float = math.inf) -> "Measure":
        """With its values without each block in turn; an interval ends where the measure does, at 0 and ``highest``."""
        half = jackknife(without)
        return cls(name, value, max(value - half, 0.0), min(value + half, highest))


@dataclass
class Quality:
    """Measures of ``count`` images against reference statistics; see `add`.

    The images form ten blocks by their positions, and memory holds ten statistics, [dim, dim] each. keep: hold on to
    the features as well, float32 [count, dim], which precision and recall need.
    """

    extractor: FeatureExtractor
    reference: Statistics
    count: int
    keep: bool = True
    _statistics: list[Statistics] = field(init=False)
    _classes: list[ClassSums | None] = field(init=False)
    _features: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise ValueError(f"images is {self.count}; allowed: from {FEWEST}, for intervals over {BLOCKS} blocks")
        name, dim = self.extractor.name, self.extractor.dim
        self._statistics = [Statistics.empty(name, dim) for _ in range(BLOCKS)]
        self._classes = [None] * BLOCKS
        if self.keep:
            self._features = torch.zeros(self.count, dim)

    def add(self, positions: Sequence[int], images: Tensor) -> None:
        """Measure images [B, C, H, W] (uint8, or float in [-1, 1]) that stand at these positions, each below count.

        Every position is to be added once; their order does not matter.
        """
        features, probabilities = self.extractor(images)
        at = torch.tensor(positions, dtype=torch.int64)
        if self._features is not None:
            self._features[at] = features
        block_of = blocks_of(self.count)[at]
        for block in block_of.unique().tolist():
            here = block_of == block
            self._statistics[block] += Statistics.of(self.extractor.name, features[here])
            sums, before = ClassSums.of(probabilities[here]), self._classes[block]
            self._classes[block] = sums if before is None else before + sums

    def measures(self, real: Tensor | None, missing: str = "") -> list[Measure]:
        """Frechet distance, inception-style score, precision and recall of all images.

        real: features of as many real images, or None and the reason why they are ``missing``.
        """
        if sum(statistics.count for statistics in self._statistics) != self.count:
            raise ValueError(f"{sum(s.count for s in self._statistics)} images were added; needed: {self.count}")
        found = [self._distance(), self._score()]
        if real is None or self._features is None:
            return [*found, Measure("precision", missing=missing), Measure("recall", missing=missing)]
        pr = precision_recall(real, self._features, blocks=blocks_of(self.count))
        precisions, recalls = zip(*pr.without, strict=True)
        found.append(Measure.over_blocks("precision", pr.precision, precisions, 1.0))
        return [*found, Measure.over_blocks("recall", pr.recall, recalls, 1.0)]

    def distances(self) -> tuple[float, list[float]]:
        """The Frechet distance of all images, and that without each block in turn, for `intervals.jackknife`.

        The same seeds stand in the same blocks, so two samplers' values without a block are compared pair by pair.
        """
        left_out = [[s for s in self._statistics if s is not block] for block in self._statistics]
        value, *without = (
            frechet_distance(self.reference, sum(part[1:], start=part[0])) for part in [self._statistics, *left_out]
        )
        return value, without

    def _distance(self) -> Measure:
        return Measure.over_blocks("Frechet distance", *self.distances())

    def _score(self) -> Measure:
        """The mean over the ten blocks, as is usual, and the interval of this mean."""
        scores = [sums.score for sums in self._classes if sums is not None]
        without = [(sum(scores) - score) / (BLOCKS - 1) for score in scores]
        return Measure.over_blocks("inception-style score", sum(scores) / BLOCKS, without)


def share(name: str, hits: Tensor) -> Measure:
    """Which part of a bool [N] is true, N from `FEWEST`."""
    return Measure.over_blocks(name, hits.double().mean().item(), means_without(hits), 1.0)
