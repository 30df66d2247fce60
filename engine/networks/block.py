"""The residual block shared by DDPM++, NCSN++ and ADM: two convolutions, an embedding, optional self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


Embedding = Tensor | Sequence[Tensor]  # [B, emb_channels] float32, or what the blocks' affine layers make of it


class UNetBlock(nn.Module):
    """x [B, in_channels, H, W], emb an `Embedding` -> [B, out_channels, H', W'] in x's dtype."""

    affine: nn.Module
    folded = False  # skip_scale is in the weights
    sorted_qkv = False

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

    def forward(self, x: Tensor, emb: Embedding, beside: Tensor | None = None) -> Tensor:
        """beside: a skip connection's tensor, whose channels follow x's; both together are ``in_channels``."""
        bare = self.skip is None or not self.skip.kernel  # what is kept is added as it is
        keep = self.skip_scale if self.folded and bare else 1.0
        y, past = self.norm0.both(x, silu=True, beside=beside, resample=self.conv0.resample, keep=keep)
        y = self.conv0.convolve(y)
        params = self.affine(emb)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            y = self.norm1(y, silu=True, scale_shift=(scale, shift))
        else:
            y = self.norm1(y, silu=True, add=params)
        y = F.dropout(y, self.dropout) if self.training else y
        x = self.join(self.conv1, y, past if self.skip is None else self.skip.convolve(past))
        return self.attend(x) if self.num_heads else x

    def join(self, conv: Conv2d, y: Tensor, past: Tensor) -> Tensor:
        """(conv(y) + past) * skip_scale: a branch and what it was taken from, kept at its variance (ADM lets it grow).

        Folded, the scale is in the weights and in ``past`` already.
        """
        if self.folded:
            return conv.convolve(y, past)
        return conv(y) + past if self.skip_scale == 1 else (conv(y) + past) * self.skip_scale

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the pixels. The published layout of qkv's channels is [head, channel, (q, k, v)]."""
        batch, channels, height, width = x.shape
        y, past = self.norm2.both(x, keep=self.skip_scale if self.folded else 1.0)
        shape = (batch, self.num_heads, channels // self.num_heads, 3, -1)
        if self.sorted_qkv:
            packed = self.qkv(y).reshape(batch, 3, *shape[1:3], -1).permute(1, 0, 2, 4, 3)
        else:
            packed = self.qkv(y).reshape(shape).permute(3, 0, 1, 4, 2)
        a = self.qkv.ops.attention(*packed.unbind(0))
        a = a.transpose(2, 3).reshape(batch, channels, height, width)
        return self.join(self.proj, a, past)

    def fold(self, biases: bool = False) -> None:
        """Move skip_scale into the weights of the convolutions that are summed: for use, not for training or saving.

        biases: also the bias of the first of two that are summed into the other's, where adding one is an operation.
        """
        summed = [self.conv1, *([self.proj] if self.num_heads else [])]
        summed += [self.skip] if self.skip is not None and self.skip.kernel else []
        for conv in summed if self.skip_scale != 1 else []:
            conv.replace_weights(lambda t: t * self.skip_scale)
        self.folded = True
        if biases and self.skip is not None and self.skip.bias is not None and self.conv1.bias is not None:
            self.conv1.bias = nn.Parameter((self.conv1.bias + self.skip.bias).detach(), requires_grad=False)
            self.skip.bias = None

    def sort_qkv(self) -> None:
        """Give qkv's channels the order [(q, k, v), head, channel], in which attention reads them where they lie."""
        self.qkv.replace_weights(lambda t: t.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1).contiguous())
        self.sorted_qkv = True


class Share(nn.Module):
    """A block's share of what `Gathered` computes for all."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, shares: Sequence[Tensor]) -> Tensor:
        return shares[self.index]


class Gathered(Linear):
    """The affine layers of all blocks in one product: emb [B, emb_channels] -> each block's columns of the result."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        widths = [len(weight) for weight in weights]
        with torch.device("meta"):  # draws nothing from the process's random numbers
            super().__init__(weights[0].shape[1], sum(widths))
        self.widths = widths
        self.weight, self.bias = (nn.Parameter(torch.cat([*t]).detach()) for t in (weights, biases))

    def forward(self, emb: Tensor) -> Sequence[Tensor]:  # type: ignore[override]
        return super().forward(emb).split(self.widths, dim=1)


def gather_affines(network: nn.Module) -> Gathered:
    """One layer for the affine layers of all blocks, which then take their shares of its result.

    Where these are added to a convolution's output, its bias is in the layer too.
    """
    blocks = [module for module in network.modules() if isinstance(module, UNetBlock)]
    weights, biases = ([getattr(block.affine, name) for block in blocks] for name in ("weight", "bias"))
    for index, block in enumerate(blocks):
        if not block.adaptive_scale and block.conv0.bias is not None:
            biases[index] = biases[index] + block.conv0.bias.to(biases[index].dtype)
            block.conv0.bias = None
    for index, block in enumerate(blocks):
        block.affine = Share(index)
    return Gathered(weights, biases)
