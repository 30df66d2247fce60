"""Tiny models of diffusers with weights that do something."""

import diffusers
import torch
from torch import nn

SHAPE = (3, 8, 8)
TOKENS, DIM = 4, 16


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            drawn = torch.randn(p.shape, generator=generator)
            p.copy_(drawn / p[0].numel() ** 0.5 if p.dim() > 1 else 0.5 + 0.2 * drawn)
    return model.eval()


def unet(**options: object) -> diffusers.UNet2DModel:
    given = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    }
    return randomised(diffusers.UNet2DModel(**{**given, **options}))


def conditional_unet(**options: object) -> diffusers.UNet2DConditionModel:
    given = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": DIM,
    }
    return randomised(diffusers.UNet2DConditionModel(**{**given, **options}))
