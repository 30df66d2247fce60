"""Our own convolutions on a CPU (csrc/winograd_op.h), 3x3 by Winograd's minimal filtering, and 1x1: which of them, and
their weights."""

import functools
import math
import operator
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_POINTS = {
    1: (),
    2: (0.0, 1.0, -1.0),
    4: (0.0, 0.75, -0.75, 1.5, -1.5),
}  # and infinity: where csrc/winograd_isa.cpp evaluates
_PANEL = 32  # kPanel there


def tile_for(x: Tensor, weight: Tensor, padding: int) -> int | None:
    """m of the m by m outputs of a tile; None for a convolution that is left to oneDNN (figures: bench/bench_convs.py).

    1x1, m = 1: up to twice oneDNN's speed for single images, some nine tenths of it for large batches. 3x3: float32
    takes m = 2, with less error than the sum as defined, and 1.4 to 2 times as fast. Half precision computes in
    float32 too, so that m = 4 costs no accuracy; of small images it has too few tiles for the weights that it reads.
    Where products of bfloat16 are faster than float32's, oneDNN keeps all but large images of many channels; with AMX
    all.
    """
    outputs, inputs, *kernel = weight.shape
    pixels = x.shape[2] * x.shape[3]
    if inputs % 16 or outputs % 16 or (*kernel, padding) not in ((1, 1, 0), (3, 3, 1)):
        return None
    large = kernel == [3, 3] and pixels >= 256
    if x.dtype == torch.bfloat16:
        worth = large and min(inputs, outputs) >= 64
        if _has_amx() or (_has_fast_halves() and not worth):
            return None
    if kernel == [1, 1]:
        return 1
    if pixels < 64:
        return None
    return 4 if large and x.dtype != torch.float32 else 2


def transform(weight: Tensor, m: int) -> Tensor:
    """G w G^T of weight [outputs, inputs, 3, 3], or for m = 1 weight [outputs, inputs, 1, 1] itself, as the loops read
    it: float32 [outputs / 32, (m + 2)^2 or 1, inputs, 32].

    In float64 until the end, term by term: the bits are the same on every machine.
    """
    points = _POINTS[m]
    G = [[p**j / math.prod(p - q for q in points if q != p) for j in range(3)] for p in points] + [[0.0, 0.0, 1.0]]
    G = [[1.0]] if m == 1 else G
    U = _along(_along(weight.double(), 2, G), 3, G).flatten(2)
    U = F.pad(U, (0, 0, 0, 0, 0, -len(U) % _PANEL))
    return U.unflatten(0, (-1, _PANEL)).permute(0, 3, 2, 1).float().contiguous()


def _along(w: Tensor, dim: int, matrix: Sequence[Sequence[float]]) -> Tensor:
    """The matrix times one dimension, a multiplication and an addition at a time."""
    terms = w.unbind(dim)
    return torch.stack([functools.reduce(torch.add, map(operator.mul, row, terms)) for row in matrix], dim)


@cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def _has_fast_halves() -> bool:
    """Whether products of bfloat16 are faster than float32's: AMD's take half the time, Intel's as long or longer."""
    from engine import _native

    return bool(torch.cpu._is_avx512_bf16_supported()) and _native.is_amd()
