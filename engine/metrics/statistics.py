"""Mean and covariance of features, batch by batch at constant memory, and the files they are kept in."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_path

_FORMAT = "edm-engine statistics 1"


@dataclass(frozen=True)
class Statistics:
    """Of ``count`` images: mean [dim] and scatter [dim, dim] of their features, float64.

    scatter: the sum of the outer products of the deviations from the mean. Two add up by the formula of Chan, Golub
    and LeVeque 1979, which unlike a sum of squares does not cancel. extractor: whose features, `FeatureExtractor.name`.
    """

    extractor: str
    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, extractor: str, dim: int) -> "Statistics":
        """Of no images."""
        return cls(extractor, 0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, extractor: str, features: Tensor) -> "Statistics":
        """Of features [B, dim], B from 1."""
        features = features.double()
        mean = features.mean(0)
        deviations = features - mean
        return cls(extractor, len(features), mean, deviations.T @ deviations)

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of the images of both. Raises ValueError if they have features of different networks."""
        self.check_same(other)
        count = self.count + other.count
        apart, share = other.mean - self.mean, other.count / max(count, 1)
        scatter = self.scatter + other.scatter + (self.count * share) * torch.outer(apart, apart)
        return Statistics(self.extractor, count, self.mean + share * apart, scatter)

    def check_same(self, other: "Statistics") -> None:
        """Raises ValueError unless both are of the same network's features."""
        if self.extractor != other.extractor:
            raise ValueError(f"statistics of {self.extractor!r} and of {other.extractor!r} do not compare")

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [dim, dim] float64. Raises ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance of {self.count} images; allowed: from 2")
        return self.scatter / (self.count - 1)

    def save(self, path: Path, notes: dict[str, str] | None = None) -> None:
        """Write a safetensors file, atomically: count, mean, and the upper triangle of the scatter."""
        row, column = torch.triu_indices(*self.scatter.shape)
        tensors = {"mean": self.mean, "scatter": self.scatter[row, column]}
        metadata = (notes or {}) | {"format": _FORMAT, "extractor": self.extractor, "count": str(self.count)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Statistics":
        """What `save` wrote. Raises ValueError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}; allowed: {_FORMAT!r}")
        mean = tensors["mean"]
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        row, column = torch.triu_indices(*scatter.shape)
        scatter[row, column] = scatter[column, row] = tensors["scatter"]
        return cls(metadata["extractor"], int(metadata["count"]), mean, scatter)
