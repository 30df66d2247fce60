"""3x3 convolutions by Winograd's minimal filtering on a CPU (csrc/winograd_op.h): which of them, and their weights."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}  # and infinity: where csrc/winograd_isa.cpp evaluates
_PANEL = 32  # kPanel there


def tile_for(x: Tensor, weight: Tensor, padding: int) -> int | None:
    """m of the m by m outputs of a tile; None for a convolution that is left to oneDNN.

    float32 takes m = 2, whose error is below that of the sum as defined, at 1.2 to 1.9 times oneDNN's speed on a Zen 5
    (bench/bench_ops.py). Half precision computes in float32 too and takes m = 4 for large images, m = 2 for small ones,
    whose weights it would read for too few tiles; but where the processor's own products of halves are faster than
    float32's, oneDNN wins unless both the image and the channels are large, and with AMX always.
    """
    outputs, inputs, *kernel = weight.shape
    pixels = x.shape[2] * x.shape[3]
    if kernel != [3, 3] or padding != 1 or inputs % 16 or outputs % 16 or pixels < 64:
        return None
    if x.dtype == torch.float32:
        return 2
    large = pixels >= 256
    if x.dtype == torch.bfloat16 and (
        _has_amx() or (_has_fast_halves() and not (large and min(inputs, outputs) >= 128))
    ):
        return None
    return 4 if large else 2


def transform(weight: Tensor, m: int) -> Tensor:
    """G w G^T of weight [outputs, inputs, 3, 3], as the loops read it: float32 [outputs / 32, (m + 2)^2, inputs, 32].

    In float64 until the end, term by term: the bits are the same on every machine.
    """
    points = _POINTS[m]
    G = [[p**j / math.prod(p - q for q in points if q != p) for j in range(3)] for p in points] + [[0.0, 0.0, 1.0]]
    U = _along(_along(weight.double(), 2, G), 3, G).flatten(2)
    U = F.pad(U, (0, 0, 0, 0, 0, -len(U) % _PANEL))
    return U.unflatten(0, (-1, _PANEL)).permute(0, 3, 2, 1).float().contiguous()


def _along(w: Tensor, dim: int, matrix: Sequence[Sequence[float]]) -> Tensor:
    """The matrix times one dimension, a multiplication and an addition at a time."""
    terms = w.unbind(dim)
    sums = [row[0] * terms[0] + row[1] * terms[1] + row[2] * terms[2] for row in matrix]
    return torch.stack(sums, dim)


@cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


@cache
def _has_fast_halves() -> bool:
    """Whether products of bfloat16 are faster than float32's: AMD's take half the time, Intel's as long or longer."""
    from engine import _native

    return bool(torch.cpu._is_avx512_bf16_supported()) and _native.is_amd()
