"""Improved precision and recall (Kynkaanniemi et al. 2019): how much of each set lies in the other's manifold.

The manifold of a set is the union of balls around its samples, each as far as the k-th nearest other sample of the set.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1000  # rows of a distance matrix at once: 80 MB for 10,000 columns


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
    float64, in chunks of 1000 rows. Raises ValueError for sets of k images or fewer.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"{name} has {len(features)} images; allowed: more than k = {k}")
    group = torch.zeros(len(generated), dtype=torch.int64) if blocks is None else blocks
    count = int(group.max()) + 1 if blocks is not None else 0
    inside = _covered(generated, real, [_radii(real, k)])[0].double()
    radii = _radii_without(generated, group, k, count)
    reached = [covered.double().mean().item() for covered in _covered(real, generated, radii)]
    precisions = [inside[group != block].mean().item() for block in range(count)]
    return PrecisionRecall(inside.mean().item(), reached[0], tuple(zip(precisions, reached[1:], strict=True)))


def _radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each sample to its k-th nearest other sample, [N]."""
    return torch.cat([rows.kthvalue(k, dim=1).values for rows, _ in _to_others(features)])


def _radii_without(features: Tensor, group: Tensor, k: int, count: int) -> list[Tensor]:
    """`_radii` of all samples, then with each block left out in turn; its own samples then have -1: no ball at all.

    One pass: the k nearest of each block are all that any of the sets can need.
    """
    found: list[list[Tensor]] = [[] for _ in range(count + 1)]
    for rows, at in _to_others(features):
        every = range(max(count, 1))
        nearest = [
            rows[:, group == block].topk(min(k, int((group == block).sum())), largest=False)[0] for block in every
        ]
        for left_out, radii in enumerate(found, start=-1):
            others = torch.cat([nearest[block] for block in every if block != left_out], dim=1)
            squared = others.kthvalue(k, dim=1).values if others.shape[1] >= k else rows.new_full([len(rows)], -1)
            radii.append(torch.where(group[at] == left_out, -1, squared))
    return [torch.cat(radii) for radii in found]


def _to_others(features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Squared distances [rows, N] of some samples to all, infinite to themselves, and which samples they are."""
    for at in torch.arange(len(features)).split(_CHUNK):
        rows = _squared_distances(features[at], features)
        rows[torch.arange(len(at)), at] = torch.inf
        yield rows, at


def _covered(points: Tensor, centres: Tensor, radii: list[Tensor]) -> list[Tensor]:
    """For each set of radii, whether each point lies in a ball around a centre: bool [N]."""
    found: list[list[Tensor]] = [[] for _ in radii]
    for chunk in points.split(_CHUNK):
        rows = _squared_distances(chunk, centres)
        for squared, covered in zip(radii, found, strict=True):
            covered.append((rows <= squared).any(1))
    return [torch.cat(covered) for covered in found]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp(min=0)
