"""Counter-based normal noise: the same float32 bits in NumPy, torch, C++, Triton and CUDA.

Words come from Philox4x32-10 (Salmon et al. 2011), a pure function of (seed, element, draw), and
become normals by the Box-Muller transform, written from IEEE float32 `+ - * sqrt`, conversions,
integer operations and selects only. So a sample's noise depends on its seed and on nothing else:
not on the batch, the sample's place in it, the device or the backend.

This file is the reference, written once for NumPy arrays and torch tensors (`xp` is the module);
csrc/philox.h and csrc/normal.h hold the same arithmetic, operation by operation. Words are int64
arrays with values in [0, 2**32), because torch has little unsigned arithmetic.

Largest error over every argument that can occur: log 0.842 ulp, sin 0.897 ulp, cos 0.894 ulp.
"""

from __future__ import annotations

import importlib.util
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .transfer import to_device

Array = Any  # a NumPy array or a torch tensor; `xp` says which
Device = torch.device | str | int | None

BACKENDS = ("auto", "cuda", "cpu", "triton", "reference")

_MASK = 0xFFFFFFFF
_LABEL_DRAW = 2**63 - 1
_hex = float.fromhex

# Minimax coefficients, exactly float32, highest degree first. See csrc/normal.h for the ranges.
_LOG_P = [
    _hex(c)
    for c in (
        "-0x1.482cf6p-4", "0x1.0be48ap-3", "-0x1.0d2e1ep-3", "0x1.219c94p-3",
        "-0x1.545e64p-3", "0x1.99b418p-3", "-0x1.0002b2p-2", "0x1.55551ep-2",
    )
]  # fmt: skip
_COS_Q = [_hex(c) for c in ("-0x1.d9b6a0p-19", "0x1.55c5b0p-12", "-0x1.03c1dep-6", "0x1.de9e64p-5")]
_SIN_R = [_hex(c) for c in ("0x1.2d3eaap-15", "-0x1.465c76p-9", "0x1.4abbb2p-4", "-0x1.21fb52p-5")]
_LN2_HI = _hex("0x1.62e4p-1")  # 17 bits, so that times a 6-bit exponent it is exact
_LN2_LO = _hex("0x1.7f7d1cp-20")
_SQRT_HALF_BITS = 0x3F3504F3


def _cast(x: Array, dtype: Any, xp: Any) -> Array:
    return x.to(dtype) if xp is torch else x.astype(dtype)


def _horner(coefficients: list[float], x: Array) -> Array:
    p = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        p = p * x + c
    return p


def _mulhilo(m: int, x: Array) -> tuple[Array, Array]:
    """High and low words of `m * x`, in two 16-bit steps: the full product would overflow int64."""
    low = m * (x & 0xFFFF)
    high = m * (x >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox_ref(
    key: tuple[Array, Array], counter: tuple[Array, Array, Array, Array], xp: Any = torch
) -> tuple[Array, Array, Array, Array]:
    """Philox4x32-10 (Salmon et al. 2011, section 5).

    Args:
        key: two int64 arrays of 32-bit words, low word first.
        counter: four int64 arrays of 32-bit words; all six broadcast together.
        xp: `numpy` or `torch`, whichever the arrays belong to.

    Returns:
        Four int64 arrays of 32-bit words, of the broadcast shape.
    """
    k0, k1 = key
    c0, c1, c2, c3 = xp.broadcast_tensors(*counter) if xp is torch else xp.broadcast_arrays(*counter)
    for _ in range(10):
        a_hi, a_lo = _mulhilo(0xD2511F53, c0)
        b_hi, b_lo = _mulhilo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = b_hi ^ c1 ^ k0, b_lo, a_hi ^ c3 ^ k1, a_lo
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def log_ref(u: Array, xp: Any = torch) -> Array:
    """Natural logarithm of float32 `u` in [2**-33, 1], within 0.842 ulp; log(1) is 0 exactly.

    u = 2^k m with m in [sqrt(1/2), sqrt(2)), f = m - 1: log u = k ln2 + f - f^2/2 + f^3 P(f).
    """
    i = u.view(xp.int32) - _SQRT_HALF_BITS
    k = _cast(i >> 23, xp.float32, xp)
    f = ((i & 0x007FFFFF) + _SQRT_HALF_BITS).view(xp.float32) - 1.0
    z = f * f
    y = (f * z) * _horner(_LOG_P, f)
    y = y + k * _LN2_LO
    y = y - 0.5 * z
    return k * _LN2_HI + (f + y)


def cos_sin_ref(t: Array) -> tuple[Array, Array]:
    """cos and sin of (pi/4) t, float32 `t` in [-1, 1], within 0.894 and 0.897 ulp."""
    z = t * t
    cos = 1.0 - (0.25 * z + z * _horner(_COS_Q, z))
    sin = t - (0.25 * t + t * _horner(_SIN_R, z))
    return cos, sin


def sqrt_ref(x: Array, xp: Any = torch) -> Array:
    """Square root of float32 `x`, correctly rounded.

    torch.sqrt on a CPU goes through MKL, which is off by one ulp for one float32 in six (and one
    float64 in eighty) on an AMD EPYC, torch 2.13. Through float64 that does no harm: the root of a
    24-bit number is at least four float64 ulps away from any midpoint of two float32.
    """
    return _cast(xp.sqrt(_cast(x, xp.float64, xp)), xp.float32, xp)


def box_muller_ref(ra: Array, rb: Array, xp: Any = torch) -> tuple[Array, Array]:
    """Two float32 normals from two words (int64 arrays): `ra` the radius, `rb` the angle."""
    u = _cast(ra, xp.float32, xp) * 2.0**-32 + 2.0**-33
    radius = sqrt_ref(-2.0 * log_ref(u, xp), xp)
    quadrant = ((rb + (1 << 29)) >> 30) & 3
    rest = (rb << 2) & _MASK
    rest = rest - ((rest >> 31) << 32)  # as a signed 32-bit integer: eighths of a turn, times 2^31
    cos, sin = cos_sin_ref(_cast(rest, xp.float32, xp) * 2.0**-31)
    swap = (quadrant & 1) != 0
    x, y = xp.where(swap, sin, cos), xp.where(swap, cos, sin)
    x = xp.where(((quadrant + 1) & 2) != 0, x * -1.0, x)
    y = xp.where((quadrant & 2) != 0, y * -1.0, y)
    return radius * x, radius * y


def _words(values: list[int], xp: Any, device: Device) -> tuple[Array, Array]:
    """Low and high words of 64-bit integers, as int64 columns `[len(values), 1]`."""
    halves = ([v & _MASK for v in values], [v >> 32 for v in values])
    where = {"device": device} if xp is torch else {}
    low, high = (xp.asarray(h, dtype=xp.int64, **where).reshape(-1, 1) for h in halves)
    return low, high


def normal_ref(
    seeds: Sequence[int] | torch.Tensor,
    draw: int | Sequence[int] | torch.Tensor,
    shape: Sequence[int],
    *,
    xp: Any = torch,
    device: Device = None,
) -> Any:
    """The reference of `normal`, on NumPy (`xp=numpy`, no device) or torch; same arguments and bits.

    Returns:
        A float32 array of the module `xp`, `[len(seeds), *shape]`.
    """
    keys, draws, dims = _check(seeds, draw, shape)
    where = {"device": device} if xp is torch else {}
    quads = xp.arange(-(-math.prod(dims) // 4), dtype=xp.int64, **where)[None, :]
    counter = (quads & _MASK, quads >> 32, *_words(draws, xp, device))
    r0, r1, r2, r3 = philox_ref(_words(keys, xp, device), counter, xp)
    z = xp.stack((*box_muller_ref(r0, r1, xp), *box_muller_ref(r2, r3, xp)), -1)
    z = z.reshape(len(keys), 4 * quads.shape[1])[:, : math.prod(dims)].reshape(len(keys), *dims)
    return z.contiguous() if xp is torch else np.ascontiguousarray(z)


def normal(
    seeds: Sequence[int] | torch.Tensor,
    draw: int | Sequence[int] | torch.Tensor,
    shape: Sequence[int],
    *,
    backend: str = "auto",
    device: Device = None,
) -> torch.Tensor:
    """Standard normal noise by Philox4x32-10 (Salmon et al. 2011) and Box-Muller.

    Element e (C-contiguous order) of sample b is a function of `(seeds[b], draw[b], e)` alone; every
    backend computes it with the same bits. The largest magnitude is sqrt(-2 ln 2**-33), about 6.76.

    Args:
        seeds: one integer in [0, 2**64) per sample: a sequence or a 1-D integer tensor.
        draw: which of a seed's independent draws, an integer in [0, 2**63); or one per sample.
        shape: the shape of one sample.
        backend: "reference" (torch operations, any device), "cpu" (native C++), "cuda" and
            "triton" (a CUDA device), or "auto": "cpu" or "cuda" where the extension has it, else
            "reference".
        device: where the result lives; the CPU if None.

    Returns:
        A float32 tensor `[len(seeds), *shape]`, contiguous.

    Raises:
        ValueError: an argument is out of range, or `backend` is unknown or cannot run on `device`.
        RuntimeError: "cpu" or "cuda" is asked for and not built, or CUDA cannot run.
    """
    target = torch.device("cpu" if device is None else device)
    chosen = _choose(backend, target)
    if chosen == "cpu":
        return _normal_cpu(*_check(seeds, draw, shape))
    if chosen == "cuda":
        return _normal_cuda(*_check(seeds, draw, shape), target)
    if chosen == "triton":
        return _normal_triton(*_check(seeds, draw, shape), target)
    result: torch.Tensor = normal_ref(seeds, draw, shape, xp=torch, device=target)
    return result


def uniform_int(seeds: Sequence[int], high: int) -> list[int]:
    """One integer in [0, high) a seed, high up to 2**32: the class a seed draws when it is given none.

    floor(w * high / 2^32) of the first word w of draw 2^63 - 1, which no noise uses.
    """
    keys = _integers("seeds", seeds, 64)
    draw = _words([_LABEL_DRAW] * len(keys), torch, None)
    zero = torch.zeros_like(draw[0])
    word = philox_ref(_words(keys, torch, None), (zero, zero, *draw))[0]
    return [w * high >> 32 for w in word.flatten().tolist()]


def seed_bits(seeds: Sequence[int], device: Device) -> torch.Tensor:
    """Integers in [0, 2**64) as int64 [B] of the same bit pattern, on ``device``."""
    return torch.tensor([seed - (seed >> 63 << 64) for seed in seeds], dtype=torch.int64, device=device)


def _normal_cpu(keys: list[int], draws: list[int], dims: list[int]) -> torch.Tensor:
    from engine import _native

    key, counter = np.array(keys, dtype=np.uint64), np.array(draws, dtype=np.uint64)
    out = torch.empty((len(keys), *dims), dtype=torch.float32)
    addresses = key.ctypes.data, counter.ctypes.data, out.data_ptr()
    _native.normal(*addresses, len(keys), math.prod(dims), threads=torch.get_num_threads())
    return out


def _normal_cuda(keys: list[int], draws: list[int], dims: list[int], device: torch.device) -> torch.Tensor:
    from engine import _native

    out = torch.empty((len(keys), *dims), dtype=torch.float32, device=device)
    key, counter = (to_device(seed_bits(values, "cpu"), out.device) for values in (keys, draws))
    addresses = key.data_ptr(), counter.data_ptr(), out.data_ptr()
    stream = torch.cuda.current_stream(out.device).cuda_stream
    _native.normal_cuda(*addresses, len(keys), math.prod(dims), out.device.index, stream)
    return out


def _normal_triton(keys: list[int], draws: list[int], dims: list[int], device: torch.device) -> torch.Tensor:
    from .kernels import philox

    if math.prod(dims) >= 2**31 - 512:
        raise ValueError(f"shape is {tuple(dims)}; allowed with backend 'triton': fewer than 2^31 - 512 elements")
    out = torch.empty((len(keys), *dims), dtype=torch.float32, device=device)
    key, counter = (to_device(seed_bits(values, "cpu"), device) for values in (keys, draws))
    philox.normal(key, counter, out)
    return out


def _cuda_built() -> bool:
    if not _native_built():
        return False
    from engine import _native

    return _native.cuda_built and torch.version.hip is None


def _native_built() -> bool:
    # Looked for, not tried: an extension that is there but does not load is an error to show.
    return importlib.util.find_spec("engine._native") is not None


def _choose(backend: str, device: torch.device) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed: {', '.join(map(repr, BACKENDS))}")
    if backend == "auto":
        built = {"cpu": _native_built, "cuda": _cuda_built}.get(device.type, lambda: False)
        return device.type if built() else "reference"
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend is 'cpu' with device '{device}'; allowed: 'auto' or 'reference', or a CPU device")
    if backend in ("cuda", "triton") and device.type != "cuda":
        raise ValueError(
            f"backend is '{backend}' with device '{device}'; allowed: 'auto' or 'reference', or a CUDA device"
        )
    if backend == "cpu" and not _native_built():
        raise RuntimeError("backend='cpu' cannot run: engine._native is not built; allowed: 'reference'")
    if backend == "cuda" and not _cuda_built():
        raise RuntimeError("backend='cuda' cannot run: engine._native has no CUDA; allowed: 'triton', 'reference'")
    return backend


def _check(seeds: Any, draw: Any, shape: Any) -> tuple[list[int], list[int], list[int]]:
    """Seeds and draws, one per sample, and the sample's shape, as plain lists of integers."""
    keys = _integers("seeds", seeds, 64)
    if hasattr(draw, "__len__") and not (isinstance(draw, torch.Tensor) and draw.ndim == 0):
        draws = _integers("draw", draw, 63)
        if len(draws) != len(keys):
            raise ValueError(f"draw has {len(draws)} entries; allowed: one integer, or one per seed ({len(keys)})")
    else:
        draws = [_integer("draw", draw, 63)] * len(keys)
    return keys, draws, _integers("shape", shape, 63)


def _integers(name: str, values: Any, bits: int) -> list[int]:
    """`values` as a list of Python integers in [0, 2**bits), or a ValueError that names them."""
    if isinstance(values, torch.Tensor) and values.ndim != 1:
        raise ValueError(f"{name} has shape {list(values.shape)}; allowed: a 1-D tensor")
    try:
        items = values.tolist() if isinstance(values, torch.Tensor) else list(values)
    except TypeError:
        raise ValueError(f"{name} is {values!r}; allowed: a sequence of integers in [0, 2**{bits})") from None
    return [_integer(f"{name}[{i}]", item, bits) for i, item in enumerate(items)]


def _integer(name: str, value: Any, bits: int) -> int:
    # bool has __index__, and as a seed it is always a mistake.
    try:
        index = operator.index(value)
    except TypeError:
        index = -1
    if isinstance(value, bool) or not 0 <= index < 1 << bits:
        raise ValueError(f"{name} is {value!r}; allowed: an integer in [0, 2**{bits})")
    return index
