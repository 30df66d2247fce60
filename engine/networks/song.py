"""SongUNet: the DDPM++ and NCSN++ architectures of Song et al. 2021, as trained in the EDM paper."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .block import BlockStyle, Embedding, UNetBlock
from .layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding
from .sizes import require_sizes

_ALLOWED = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}


class SongUNet(nn.Module):
    """DDPM++ (positional, standard, standard, [1, 1]) or NCSN++ (fourier, residual, standard, [1, 3, 3, 1]).

    Parameter names and shapes are those of the published EDM networks. Call it as
    ``network(x [B, in_channels, H, W], noise_labels [B] float32, class_labels [B, label_dim] float32 or None,
    augment_labels [B, augment_dim] or None) -> [B, out_channels, H, W]``; x's dtype is the convolutions'.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        require_sizes(locals())
        given = {"embedding_type": embedding_type, "encoder_type": encoder_type, "decoder_type": decoder_type}
        for name, value in given.items():
            if value not in _ALLOWED[name]:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(_ALLOWED[name])}")
        super().__init__()
        self.img_resolution, self.in_channels, self.out_channels = img_resolution, in_channels, out_channels
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.affines: nn.Module | None = None  # all blocks' affine layers in one, once an engine has gathered them
        emb_channels, noise_channels = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        init = Init("xavier_uniform")
        self._style = BlockStyle(
            emb_channels=emb_channels,
            dropout=dropout,
            init=init,
            init_zero=Init("xavier_uniform", weight=1e-5),
            init_attn=Init("xavier_uniform", weight=np.sqrt(0.2)),
            skip_scale=np.sqrt(0.5),
            eps=1e-6,
            resample_filter=tuple(resample_filter),
            resample_proj=True,
            adaptive_scale=False,
        )
        self._widths = [model_channels * mult for mult in channel_mult]
        self._num_blocks, self._attn_resolutions = num_blocks, frozenset(attn_resolutions)

        self.map_noise = (
            PositionalEmbedding(noise_channels, endpoint=True, sin_first=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise_channels, sin_first=True)
        )
        self.map_label = Linear(label_dim, noise_channels, init=init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, init=init) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)

        self.enc = nn.ModuleDict()
        skip_widths = self._build_encoder(in_channels, model_channels, encoder_type)
        self.dec = nn.ModuleDict()
        self._build_decoder(skip_widths, decoder_type)

    def _build_encoder(self, in_channels: int, model_channels: int, encoder_type: str) -> list[int]:
        """Fills ``enc``; returns the channel count of every skip connection."""
        style, enc = self._style, self.enc
        filter = style.resample_filter
        width, aux_width, skips = in_channels, in_channels, []
        for level, level_width in enumerate(self._widths):
            res = self.img_resolution >> level
            if level == 0:
                enc[f"{res}x{res}_conv"] = Conv2d(width, model_channels, 3, init=style.init)
                width = model_channels
            else:
                enc[f"{res}x{res}_down"] = UNetBlock(width, width, style, down=True)
                if encoder_type == "skip":
                    enc[f"{res}x{res}_aux_down"] = Conv2d(aux_width, aux_width, 0, down=True, resample_filter=filter)
                    enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_width, width, 1, init=style.init)
                if encoder_type == "residual":
                    enc[f"{res}x{res}_aux_residual"] = Conv2d(
                        aux_width, width, 3, down=True, fused_resample=True, resample_filter=filter, init=style.init
                    )
                    aux_width = width
            skips.append(width)
            for index in range(self._num_blocks):
                attention = res in self._attn_resolutions
                enc[f"{res}x{res}_block{index}"] = UNetBlock(width, level_width, style, attention=attention)
                width = level_width
                skips.append(width)
        return skips

    def _build_decoder(self, skips: list[int], decoder_type: str) -> None:
        style, dec = self._style, self.dec
        width, lowest = self._widths[-1], len(self._widths) - 1
        for level in range(lowest, -1, -1):
            res = self.img_resolution >> level
            if level == lowest:
                dec[f"{res}x{res}_in0"] = UNetBlock(width, width, style, attention=True)
                dec[f"{res}x{res}_in1"] = UNetBlock(width, width, style)
            else:
                dec[f"{res}x{res}_up"] = UNetBlock(width, width, style, up=True)
            for index in range(self._num_blocks + 1):
                attention = index == self._num_blocks and res in self._attn_resolutions
                block = UNetBlock(width + skips.pop(), self._widths[level], style, attention=attention)
                dec[f"{res}x{res}_block{index}"] = block
                width = self._widths[level]
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < lowest:
                    dec[f"{res}x{res}_aux_up"] = Conv2d(
                        self.out_channels,
                        self.out_channels,
                        0,
                        up=True,
                        resample_filter=style.resample_filter,
                    )
                dec[f"{res}x{res}_aux_norm"] = GroupNorm(width, eps=1e-6)
                dec[f"{res}x{res}_aux_conv"] = Conv2d(width, self.out_channels, 3, init=style.init_zero)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the convolutions, and so of x; the embedding stays float32 unless the whole module is cast."""
        return next(p.dtype for name, p in self.enc.named_parameters() if name.endswith("_conv.weight"))

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Embedding:
        """What conditions the blocks, in the linear layers' dtype (float32): [B, emb_channels], or each block's affine
        layer's result, [B, its outputs], once these are gathered."""
        emb = self.map_noise(noise_labels).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            if class_labels is None:
                raise ValueError("class_labels is None; a network with label_dim > 0 needs [B, label_dim]")
            if self.training and self.label_dropout:
                keep = torch.rand([emb.shape[0], 1], device=emb.device) >= self.label_dropout
                class_labels = class_labels * keep
            emb = self.map_label(class_labels.to(emb.dtype) * np.sqrt(self.label_dim), add=emb)
        if self.map_augment is not None and augment_labels is not None:
            emb = self.map_augment(augment_labels.to(emb.dtype), add=emb)
        emb = self.map_layer1(self.map_layer0(emb, silu=True), silu=True)
        return emb if self.affines is None else self.affines(emb)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels)
        return self._decode(*self._encode(x, emb), emb)

    def _encode(self, x: Tensor, emb: Embedding) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) / np.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], emb: Embedding) -> Tensor:
        aux: Tensor | None = None
        y = x
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                aux = layer(aux)
            elif isinstance(layer, GroupNorm):
                y = layer(x, silu=True)
            elif name.endswith("aux_conv"):
                y = layer(y)
                aux = y if aux is None else aux + y
            else:
                x = layer(x, emb, skips.pop() if x.shape[1] != layer.in_channels else None)
        assert aux is not None  # the level of full resolution always ends in aux_conv
        return aux
