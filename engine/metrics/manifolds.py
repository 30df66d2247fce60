"""Improved precision and recall (Kynkaanniemi et al. 2019): how much of each set lies in the other's manifold.

The manifold of a set is the union of balls around its samples, each as far as the k-th nearest other sample of the set.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CELLS = 1_000_000  # of a distance matrix at once: 8 MB, and a few times that beside them


@dataclass(frozen=True)
class PrecisionRecall:
    """precision: of the generated images, which part lies in the manifold of the real ones; recall: the reverse.

    without: the same pair, with each block of generated images left out in turn.
    """

    precision: float
    recall: float
    without: tuple[tuple[float, float], ...] = ()


def precision_recall(real: Tensor, generated: Tensor, k: int = 3, blocks: Tensor | None = None) -> PrecisionRecall:
    """Of features [M, dim] and [N, dim], which are kept whole: 50,000 of 2048 float32 numbers are 0.4 GB.

    blocks: int64 [N], the block of each generated image, 0 to n - 1, for `PrecisionRecall.without`. Distances are
    float64, a part of their matrix at a time. Raises ValueError for sets of k images or fewer.
    """
    require_enough("real", real, k)
    require_enough("generated", generated, k)
    group = torch.zeros(len(generated), dtype=torch.int64) if blocks is None else blocks
    count = int(group.max()) + 1 if blocks is not None else 0
    inside = _covered(generated, real, _radii(real, k)[None])[0].double()
    radii = _radii_without(generated, group, k, count)
    reached = _covered(real, generated, radii).double().mean(1).tolist()
    precisions = [inside[group != block].mean().item() for block in range(count)]
    return PrecisionRecall(inside.mean().item(), reached[0], tuple(zip(precisions, reached[1:], strict=True)))


def require_enough(name: str, features: Tensor, k: int = 3) -> None:
    """Raises ValueError for a set of k images or fewer."""
    if len(features) <= k:
        raise ValueError(f"{name} has {len(features)} images; allowed: more than k = {k}")


def _radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each sample to its k-th nearest other sample, float64 [N]."""
    found = torch.empty(len(features), dtype=torch.float64)
    for rows, at in _to_others(features):
        found[at] = rows.kthvalue(k, dim=1).values
    return found


def _radii_without(features: Tensor, group: Tensor, k: int, count: int) -> Tensor:
    """`_radii` of all samples, then with each block left out in turn, [1 + count, N]; its own samples then have -1: no
    ball at all.

    One pass: the k nearest of each block are all that any of the sets can need.
    """
    found = torch.empty(1 + count, len(features), dtype=torch.float64)
    members = [(group == block).nonzero().flatten() for block in range(max(count, 1))]
    for rows, at in _to_others(features):
        nearest = [rows[:, others].topk(min(k, len(others)), largest=False).values for others in members]
        for left_out in range(-1, count):
            near = torch.cat([each for block, each in enumerate(nearest) if block != left_out], dim=1)
            squared = near.kthvalue(k, dim=1).values if near.shape[1] >= k else near.new_full([len(near)], -1)
            found[1 + left_out, at] = torch.where(group[at] == left_out, -1, squared)
    return found


def _to_others(features: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Squared distances [rows, N] of some samples to all, infinite to themselves, and which samples they are."""
    features = features.double()
    step = _rows(features)
    for start in range(0, len(features), step):
        at = slice(start, start + step)
        rows = _squared_distances(features[at], features)
        rows[:, at].fill_diagonal_(torch.inf)
        yield rows, at


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """For each set of radii [n, N], whether each point lies in a ball around a centre: bool [n, points]."""
    points, centres = points.double(), centres.double()
    # Filled in, not joined: small tensors kept between large ones that go cost 2 GB of torn memory at 10,000 images.
    found = torch.empty(len(radii), len(points), dtype=torch.bool)
    step = _rows(centres)
    for start in range(0, len(points), step):
        rows = _squared_distances(points[start : start + step], centres)
        for index, squared in enumerate(radii):
            found[index, start : start + step] = (rows <= squared).any(1)
    return found


def _rows(centres: Tensor) -> int:
    return max(1, _CELLS // len(centres))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[A, B] of float64 [A, dim] and [B, dim]."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp_(min=0)
