"""What the compiled operations ask of tensors, and the tensors they fill."""

import torch
from torch import Tensor

from .ops import Resample

Shape = tuple[int, int, int, int]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def suits(*tensors: Tensor | None) -> bool:
    """Whether all are images in channels_last, of a dtype that kernels know, and need no gradient."""
    for t in tensors:  # a loop: `all` of a generator takes a microsecond more, 100 times an evaluation
        if t is None:
            continue
        if t.dim() != 4 or t.dtype not in DTYPES or not t.is_contiguous(memory_format=torch.channels_last):
            return False
        if t.requires_grad and torch.is_grad_enabled():
            return False
    return True


def resamples(x: Tensor, how: Resample | None) -> bool:
    """Whether the compiled operations resample x so: an even number of taps, and pixels in pairs to halve."""
    return how is None or (len(how.taps) in (2, 4, 6, 8) and (how.up or all(n % 2 == 0 for n in x.shape[2:])))


def require_weights(x: Tensor, beside: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    """Raises ValueError where `ops.group_norm`'s tensors do not fit each other."""
    require_dtype(x, weight=weight, bias=bias, beside=beside)
    channels = x.shape[1] + (0 if beside is None else beside.shape[1])
    require_dense(weight, channels, "weight")
    require_dense(bias, channels, "bias")


def require_dense(t: Tensor | None, length: int, name: str) -> None:
    """Raises ValueError for what is no vector of this length with its elements side by side."""
    if t is not None and (t.shape != (length,) or not t.is_contiguous()):
        raise ValueError(f"{name} is {list(t.shape)} with strides {list(t.stride())}; allowed: [{length}], contiguous")


def require_dtype(x: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError for one that is not of x's dtype."""
    for name, other in others.items():
        if other is not None and other.dtype != x.dtype:
            raise ValueError(f"{name} is {other.dtype}; allowed: the dtype of x, {x.dtype}")


def rows(t: Tensor | None) -> Tensor | None:
    """float32 with dense rows; asked first, because an operation that does nothing costs a microsecond too."""
    return t if t is None or (t.dtype == torch.float32 and t.stride(1) == 1) else t.float().contiguous()


def rows_alike(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """`rows` of two, as far apart in one as in the other."""
    if pair is None:
        return None, None
    first, second = rows(pair[0]), rows(pair[1])
    assert first is not None
    assert second is not None
    alike = first.stride(0) == second.stride(0)
    return (first, second) if alike else (first.contiguous(), second.contiguous())


def empty(x: Tensor, shape: Shape) -> Tensor:
    """[B, C, H, W] of x's dtype and device in channels_last, of unspecified values."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def output_shapes(
    x: Tensor, beside: Tensor | None, resample: Resample | None, keep: float | None
) -> tuple[Shape, Shape | None]:
    """Of both results of `ops.group_norm`; None for the second where that is x itself."""
    channels = x.shape[1] + (0 if beside is None else beside.shape[1])
    height, width = ((2 * n if resample.up else n // 2) if resample else n for n in x.shape[2:])
    shape = (x.shape[0], channels, height, width)
    kept = keep is not None and (keep != 1 or beside is not None or resample is not None)
    return shape, shape if kept else None
