"""The small set of operations the networks are written in: plain torch, the reference of every faster backend.

A network's layers call them through their attribute ``ops``, an `Ops`: `TORCH` unless an engine has chosen others for
its own copy of the network (`prepare.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
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


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """silu(shift + (1 + scale) * GroupNorm(x + add)).

    x [B, C, *spatial] in any float dtype; weight, bias [C] in x's dtype; scale, shift, add [B, C] in any, or None.
    """
    x = x if add is None else x + _as_pixels(add, x)
    y = group_norm(x, weight, bias, groups, eps)
    if scale_shift is not None:
        scale, shift = (_as_pixels(t, x) for t in scale_shift)
        y = torch.addcmul(shift, y, scale + 1)
    return F.silu(y)


def _as_pixels(values: Tensor, x: Tensor) -> Tensor:
    """[B, C] -> [B, C, 1, ...] in x's dtype."""
    return values.to(x.dtype).reshape(*values.shape, *[1] * (x.dim() - 2))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    add: Tensor | None = None,
    alpha: float = 1.0,
    packed: dict[torch.Size, Tensor] | None = None,
) -> Tensor:
    """conv(x) + alpha * add; packed: where an implementation may keep its own form of the weight, by x's shape."""
    y = F.conv2d(x, weight, bias, padding=padding)
    return y if add is None else torch.add(y, add, alpha=alpha)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v over [B, heads, L, C], with the softmax accumulated in float32."""
    return F.scaled_dot_product_attention(q, k, v)


def resample(x: Tensor, filter: Tensor, *, up: bool = False, down: bool = False, padding: int = 0) -> Tensor:
    """Depthwise resampling by two of x [B, C, H, W] with a separable low-pass filter [1, 1, k, k] that sums to 1.

    The two-tap filter is a box: average pooling and pixel repetition compute the same thing
    several times faster than a grouped convolution does on a CPU.
    """
    taps = filter.shape[-1]
    if taps == 2 and padding == 0:
        if up:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if down else x
    channels = x.shape[1]
    kernel = filter.to(x.dtype).expand(channels, 1, taps, taps)
    if up:
        return F.conv_transpose2d(x, kernel * 4, stride=2, padding=padding, groups=channels)
    if down:
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)
    return x


@dataclass(frozen=True)
class Ops:
    """One implementation of each operation that has more than one."""

    name: str
    group_norm: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
    group_norm_silu: Callable[..., Tensor]
    conv2d: Callable[..., Tensor]


TORCH = Ops("torch", group_norm, group_norm_silu, conv2d)
