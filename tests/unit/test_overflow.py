"""float16 overflows at 65504: the layer where that happens is named."""

import pytest
import torch

import engine
from engine.overflow import first_nonfinite
from tests.helpers import small_unet


def overflowing(layer):
    """A network one of whose layers gives 1e6 and more: fine in float32 and bfloat16, infinite in float16."""
    denoiser = small_unet()
    with torch.no_grad():
        denoiser.model.get_submodule(layer).bias.add_(1e6)
    return denoiser


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ("enc.8x8_block0.conv1", r"enc\.8x8_block0 \(UNetBlock\)"),
        ("dec.16x16_aux_conv", r"dec\.16x16_aux_conv \(Conv2d\)"),
    ],
)
def test_the_layer_is_named(layer, named):
    denoiser, sampler = overflowing(layer), engine.samplers.edm(steps=2)
    for dtype in (torch.float32, torch.bfloat16):
        assert engine.sample(denoiser, seeds=[1], dtype=dtype, sampler=sampler).isfinite().all()
    message = rf"seed 1 .* became non-finite at row 1 .*torch.float16.*; first in layer model.{named}"
    with pytest.raises(engine.NonFiniteError, match=message):
        engine.sample(denoiser, seeds=[1, 2], dtype=torch.float16, sampler=sampler)
    with pytest.warns(RuntimeWarning, match=f"first in layer model.{named}; run again in float32"):
        images = engine.sample(denoiser, seeds=[1], dtype=torch.float16, sampler=sampler, on_nonfinite="rerun")
    assert images.isfinite().all()


def test_hooks_are_gone_afterwards():
    model = small_unet().model
    with pytest.raises(RuntimeError, match="stop"), first_nonfinite(model):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())
