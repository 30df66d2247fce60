"""DhariwalUNet: the ADM architecture of Dhariwal & Nichol 2021, as trained in the EDM paper."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import BlockStyle, Embedding, UNetBlock
from .layers import Conv2d, GroupNorm, Init, Linear, PositionalEmbedding
from .sizes import require_sizes


class DhariwalUNet(nn.Module):
    """ADM. Parameter names, shapes and the calling convention are those of :class:`SongUNet`."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        require_sizes(locals())
        super().__init__()
        self.img_resolution, self.in_channels, self.out_channels = img_resolution, in_channels, out_channels
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.affines: nn.Module | None = None  # all blocks' affine layers in one, once an engine has gathered them
        emb_channels = model_channels * channel_mult_emb
        init = Init("kaiming_uniform", weight=np.sqrt(1 / 3), bias=np.sqrt(1 / 3))
        init_zero = Init("kaiming_uniform", weight=0.0)
        style = BlockStyle(emb_channels, dropout, init, init_zero, init_attn=init, channels_per_head=64)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)
        label_init = Init("kaiming_normal", weight=np.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, bias=False, init=label_init) if label_dim else None

        widths = [model_channels * mult for mult in channel_mult]
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        width, skips = in_channels, []
        for level, level_width in enumerate(widths):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(width, level_width, 3, init=init)
                width = level_width
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(width, width, style, down=True)
            skips.append(width)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = UNetBlock(width, level_width, style, attention=attention)
                width = level_width
                skips.append(width)
        for level in range(len(widths) - 1, -1, -1):
            res = img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(width, width, style, attention=True)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(width, width, style)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(width, width, style, up=True)
            for index in range(num_blocks + 1):
                attention = res in attn_resolutions
                block = UNetBlock(width + skips.pop(), widths[level], style, attention=attention)
                self.dec[f"{res}x{res}_block{index}"] = block
                width = widths[level]
        self.out_norm = GroupNorm(width)
        self.out_conv = Conv2d(width, out_channels, 3, init=init_zero)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the convolutions, and so of x; the embedding stays float32 unless the whole module is cast."""
        return next(p.dtype for name, p in self.enc.named_parameters() if name.endswith("_conv.weight"))

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Embedding:
        """What conditions the blocks, in the linear layers' dtype (float32): [B, emb_channels], or each block's affine
        layer's result, [B, its outputs], once these are gathered."""
        emb = self.map_noise(noise_labels).to(self.map_layer0.weight.dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = self.map_augment(augment_labels.to(emb.dtype), add=emb)
        emb = self.map_layer1(self.map_layer0(emb, silu=True))
        if self.map_label is not None:
            if class_labels is None:
                raise ValueError("class_labels is None; a network with label_dim > 0 needs [B, label_dim]")
            if self.training and self.label_dropout:
                keep = torch.rand([emb.shape[0], 1], device=emb.device) >= self.label_dropout
                class_labels = class_labels * keep
            emb = self.map_label(class_labels.to(emb.dtype), add=emb)
        emb = F.silu(emb)
        return emb if self.affines is None else self.affines(emb)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            x = layer(x, emb, skips.pop() if x.shape[1] != layer.in_channels else None)
        return self.out_conv(self.out_norm(x, silu=True))
