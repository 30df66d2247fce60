"""The small set of operations the networks are written in: plain torch, the reference of every faster backend.

A network's layers call them through their attribute ``ops``, an `Ops`: `TORCH` unless an engine has chosen others for
its own copy of the network (`prepare.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

Packed = dict[torch.Size | str, Tensor]  # an implementation's own forms of a weight, by what each is for


class Resample(NamedTuple):
    """By two, up or down, with a separable low-pass filter; a kernel wants its taps, torch its outer product."""

    filter: Tensor
    taps: tuple[float, ...]
    up: bool


class Around(TypedDict, total=False):
    """What `group_norm` can do around the norm."""

    silu: bool
    beside: Tensor | None
    add: Tensor | None
    scale_shift: tuple[Tensor, Tensor] | None
    resample: Resample | None
    keep: float | None


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    beside: Tensor | None = None,
    add: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    resample: Resample | None = None,
    keep: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What a residual block makes of its input before a convolution, and what it keeps of it to add in the end:

        resample(silu(shift + (1 + scale) * GroupNorm(cat(x, beside) + add))),  resample(keep * cat(x, beside))

    x [B, C, *spatial], beside [B, C', *spatial] (for C + C' channels in all that follows) in one float dtype; weight,
    bias [C] in x's dtype; scale, shift, add [B, C] in any, or None. keep: None for a block that keeps nothing, whose
    second result is then x.
    """
    x = x if beside is None else torch.cat([x, beside], dim=1)
    y = _normalise(x if add is None else x + _as_pixels(add, x), weight, bias, groups, eps)
    if scale_shift is not None:
        scale, shift = (_as_pixels(t, x) for t in scale_shift)
        y = torch.addcmul(shift, y, scale + 1)
    y = F.silu(y) if silu else y
    if keep is not None and keep != 1:
        x = x * keep
    if resample is None:
        return y, x
    y = resample_by_two(y, resample)
    return y, x if keep is None else resample_by_two(x, resample)


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """GroupNorm(x) of x [B, C, *spatial], weight and bias [C], all of one dtype."""
    if torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return group_norm_by_channels(x, weight, bias, groups, eps)
    return F.group_norm(x, groups, weight, bias, eps)


def group_norm_by_channels(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """GroupNorm(x) from sums per channel, folded into groups by a small product.

    In channels_last, torch.compile makes scalar CPU code of anything indexed by a group of four channels, and vector
    code of this: training the shipped network goes from 90 to 122 images/s. For half precision only: the float32
    variance E[x^2] - E[x]^2 is then far more exact than x itself.
    """
    batch, channels = x.shape[:2]
    per_group = channels // groups
    fold = torch.eye(groups, device=x.device).repeat_interleave(per_group, 0).repeat_interleave(per_group, 1)
    wide, spatial, pixels = x.float(), tuple(range(2, x.dim())), x[0, 0].numel()
    sums = torch.cat([wide.sum(spatial), wide.square().sum(spatial)])
    mean, square = sums.mm(fold / (per_group * pixels)).chunk(2)
    variance = (square - mean.square()).clamp(min=0)  # rounding may leave less than nothing
    scale = (variance + eps).rsqrt() * weight.float()
    shift = bias.float() - mean * scale
    as_x = [batch, channels, *[1] * (x.dim() - 2)]
    return torch.addcmul(shift.view(as_x), wide, scale.view(as_x)).to(x.dtype)


def _as_pixels(values: Tensor, x: Tensor) -> Tensor:
    """[B, C] -> [B, C, 1, ...] in x's dtype."""
    return values.to(x.dtype).reshape(*values.shape, *[1] * (x.dim() - 2))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    add: Tensor | None = None,
    packed: Packed | None = None,
) -> Tensor:
    """conv(x) + add; packed: where an implementation may keep its own forms of the weight."""
    y = F.conv2d(x, weight, bias, padding=padding)
    return y if add is None else y + add


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, add: Tensor | None = None, silu: bool = False) -> Tensor:
    """x W^T + bias + add, or silu of it: x [B, inputs], weight [outputs, inputs], add [B, outputs]."""
    y = F.linear(x, weight, bias)
    y = y if add is None else add + y
    return F.silu(y) if silu else y


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v over [B, heads, L, C], with the softmax accumulated in float32."""
    return F.scaled_dot_product_attention(q, k, v)


def _halve(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


def _double(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


def resample_by_two(
    x: Tensor,
    how: Resample,
    *,
    padding: int | None = None,
    halve: Callable[[Tensor, Tensor, int], Tensor] = _halve,
    double: Callable[[Tensor, Tensor, int], Tensor] = _double,
) -> Tensor:
    """Depthwise resampling by two of x [B, C, H, W] with a separable low-pass filter [1, 1, k, k] that sums to 1.

    padding: of x with zeros, by default k / 2 - 1, which makes H and W exactly twice or half. The two-tap filter is a
    box: average pooling and pixel repetition compute the same thing several times faster than a grouped convolution
    does on a CPU. halve, double: what convolves x with a kernel [C, 1, k, k] at every other pixel, and the transpose.
    """
    taps, channels = how.filter.shape[-1], x.shape[1]
    padding = taps // 2 - 1 if padding is None else padding
    if taps == 2 and padding == 0 and how.taps[0] == how.taps[1]:
        return F.interpolate(x, scale_factor=2, mode="nearest") if how.up else F.avg_pool2d(x, 2)
    kernel = how.filter.to(x.dtype).expand(channels, 1, taps, taps)
    return double(x, kernel * 4, padding) if how.up else halve(x, kernel, padding)


@dataclass(frozen=True)
class Ops:
    """One implementation of each operation that has more than one."""

    name: str
    group_norm: Callable[..., tuple[Tensor, Tensor]]
    conv2d: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    resample: Callable[..., Tensor] = resample_by_two


TORCH = Ops("torch", group_norm, conv2d, linear, attention)
