"""The residual block shared by DDPM++, NCSN++ and ADM: two convolutions, an embedding, optional self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .layers import Conv2d, GroupNorm, Init, Linear


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common.

    ``adaptive_scale``: the embedding scales and shifts the second norm (ADM) or is added before it (DDPM++).
    ``channels_per_head=None`` means one attention head.
    """

    emb_channels: int
    dropout: float
    init: Init
    init_zero: Init
    init_attn: Init
    channels_per_head: int | None = None
    skip_scale: float = 1.0
    eps: float = 1e-5
    resample_filter: Sequence[int] = (1, 1)
    resample_proj: bool = False
    adaptive_scale: bool = True


class UNetBlock(nn.Module):
    """x [B, in_channels, H, W], emb [B, emb_channels] float32 -> [B, out_channels, H', W'] in x's dtype."""

    folded = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dropout, self.skip_scale, self.adaptive_scale = (
            style.dropout,
            float(style.skip_scale),  # torch.compile takes NumPy's numbers for tensors
            style.adaptive_scale,
        )
        self.num_heads = (out_channels // style.channels_per_head if style.channels_per_head else 1) if attention else 0
        init, filter = style.init, style.resample_filter

        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up=up, down=down, resample_filter=filter, init=init)
        self.affine = Linear(style.emb_channels, out_channels * (2 if style.adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=style.init_zero)

        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if style.resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, up=up, down=down, resample_filter=filter, init=init)

        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, init=style.init_attn)
            self.proj = Conv2d(out_channels, out_channels, 1, init=style.init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv0(self.norm0.silu(x))
        params = self.affine(emb)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            y = self.norm1.silu(y, (scale, shift))
        else:
            y = self.norm1.silu(y, add=params)
        y = F.dropout(y, self.dropout) if self.training else y
        past = self.skip(x) if self.skip is not None else x
        x = self.join(self.conv1, y, past, 1.0 if self.skip is not None and self.skip.kernel else self.skip_scale)
        return self.attend(x) if self.num_heads else x

    def join(self, conv: Conv2d, y: Tensor, x: Tensor, alpha: float) -> Tensor:
        """(conv(y) + x) * skip_scale: a branch and what it was taken from, of about their variance (ADM lets it grow).

        Folded, the weights hold the scale, and alpha is what is left of it for x.
        """
        if self.folded:
            return conv(y, x, alpha)
        return conv(y) + x if self.skip_scale == 1 else (conv(y) + x) * self.skip_scale

    def fold(self) -> None:
        """Move skip_scale into the weights of the convolutions that are summed: for use, not for training or saving."""
        summed = [self.conv1, *([self.proj] if self.num_heads else [])]
        summed += [self.skip] if self.skip is not None and self.skip.kernel else []
        for conv in summed if self.skip_scale != 1 else []:
            conv.scale_(self.skip_scale)
        self.folded = True

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the pixels. The published layout of qkv's channels is [head, channel, (q, k, v)]."""
        batch, channels, height, width = x.shape
        packed = self.qkv(self.norm2(x)).reshape(batch, self.num_heads, channels // self.num_heads, 3, -1)
        q, k, v = packed.permute(3, 0, 1, 4, 2).unbind(0)
        a = ops.attention(q, k, v).transpose(2, 3).reshape(batch, channels, height, width)
        return self.join(self.proj, a, x, self.skip_scale)
