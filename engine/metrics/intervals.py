"""Confidence intervals over seeds, the same way for every measure: the delete-one-block jackknife."""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCKS = 10
# 97.5% point of Student's t with BLOCKS - 1 = 9 degrees of freedom.
_T = 2.2621571627409915


def blocks_of(count: int) -> Tensor:
    """The block of each of ``count`` positions, int64 [count]: ten runs, of equal length as nearly as can be."""
    bounds = [block * count // BLOCKS for block in range(BLOCKS + 1)]
    return torch.arange(BLOCKS).repeat_interleave(torch.tensor(bounds).diff())


def means_without(values: Tensor) -> list[float]:
    """The mean of values [N], without each block in turn: what `jackknife` takes.

    Raises ValueError for fewer values than blocks.
    """
    if len(values) < BLOCKS:
        raise ValueError(f"values has {len(values)} entries; allowed: one a block at least, {BLOCKS}")
    block = blocks_of(len(values))
    return [values[block != left_out].double().mean().item() for left_out in range(BLOCKS)]


def jackknife(without: Sequence[float]) -> float:
    """Half the width of a 95% interval of a measure, from its values with each block of images left out in turn.

    t_9 times the root of 9/10 the sum of squares of their deviations from their mean (Tukey 1958, for blocks as Kunsch
    1989). It holds for means as for smooth functions of them, and for order statistics because a block is a tenth of
    the images. It is about the spread over seeds only: the bias of a distance by the number of images stays.
    Raises ValueError unless there is one value a block.
    """
    if len(without) != BLOCKS:
        raise ValueError(f"without has {len(without)} values; allowed: one a block, {BLOCKS}")
    mean = sum(without) / BLOCKS
    return float(_T * ((BLOCKS - 1) / BLOCKS * sum((value - mean) ** 2 for value in without)) ** 0.5)
