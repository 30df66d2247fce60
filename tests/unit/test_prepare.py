"""What an engine does to networks that are not of this package."""

import threading

import pytest
import torch
from torch import nn

import engine
from engine.networks.block import BlockStyle, UNetBlock
from engine.networks.layers import Init
from engine.preconditioning import EDM
from engine.prepare import _warn_of_tf32
from tests.helpers import small_unet, wavy


def test_compile_is_asked_for_by_name(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    denoiser = wavy(EDM())
    options = {"seeds": [1, 2], "sampler": engine.samplers.edm(steps=2)}
    plain = engine.sample(denoiser, **options)
    assert compiled == []
    assert torch.equal(engine.sample(denoiser, compile=True, **options), plain)
    assert len(compiled) == 1
    assert compiled[0] is not denoiser.model
    with pytest.raises(ValueError, match="compile is True; allowed: False for SongUNet, whose operations are fused"):
        engine.Engine(small_unet(), compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_network_draws_nearly_the_same():
    denoiser = wavy(EDM())
    options = {"seeds": range(5), "sampler": engine.samplers.edm(steps=3)}
    compiled = engine.sample(denoiser, compile=True, batch_size=2, **options)
    torch.testing.assert_close(compiled, engine.sample(denoiser, **options), rtol=1e-4, atol=1e-4)


def test_tf32_in_another_module_is_said(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 3, 3))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.warns(UserWarning, match=r"convolutions of this network will run in TF32.*set it to False for float32"):
        _warn_of_tf32(network)
    _warn_of_tf32(wavy(EDM()).model)  # no convolution
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    _warn_of_tf32(network)


def test_what_an_engine_has_prepared_is_not_prepared_again():
    prepared = engine.Engine(small_unet()).denoiser
    with pytest.raises(ValueError, match="one that an engine has prepared; allowed: the denoiser it was made of"):
        engine.Engine(prepared)


def test_weights_changed_later_do_not_reach_our_networks_in_part():
    """What is folded and packed stays as it was; so must all the rest."""
    denoiser, sampler = small_unet(), engine.samplers.edm(steps=2)
    prepared = engine.Engine(denoiser, sampler=sampler)
    before = prepared.sample(seeds=[1, 2])
    with torch.no_grad():
        for p in denoiser.parameters():
            p.mul_(1.05)
    assert torch.equal(prepared.sample(seeds=[1, 2]), before)
    assert not torch.equal(engine.sample(denoiser, seeds=[1, 2], sampler=sampler), before)


class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 3, padding=1)

    def forward(self, x, c_noise):
        return self.conv(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_networks_of_videos_in_every_dtype(dtype):
    torch.manual_seed(0)
    denoiser = engine.Denoiser(Video(), EDM(), img_shape=(3, 4, 8, 8))
    options = {"seeds": [1], "sampler": engine.samplers.edm(steps=3)}
    exact = engine.sample(denoiser, dtype=torch.float64, **options)
    torch.testing.assert_close(engine.sample(denoiser, dtype=dtype, **options), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_callers_autocast_does_not_reach_the_network(dtype):
    video = engine.Denoiser(Video(), EDM(), img_shape=(3, 4, 8, 8))
    for denoiser in (small_unet(), video):
        options = {"seeds": [1], "sampler": engine.samplers.edm(steps=2), "dtype": dtype}
        plain = engine.sample(denoiser, **options)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(engine.sample(denoiser, **options), plain)
            engine.Engine(denoiser, dtype=dtype).self_check()
    with torch.autocast("cpu", torch.bfloat16):
        engine.Engine(small_unet(), dtype=dtype, batch_size=2, batch_invariant=True)


def test_a_module_that_cannot_be_copied_is_refused():
    network = Video()
    network.lock = threading.Lock()
    denoiser = engine.Denoiser(network, EDM(), img_shape=(3, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^denoiser cannot be copied \(TypeError: cannot pickle .*\); allowed: "):
        engine.Engine(denoiser)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("up", [False, True])
def test_folded_blocks_compute_the_same(biases, up):
    """In float64: what is moved into weights, and with ``biases`` from one bias into another, changes nothing."""
    torch.manual_seed(0)
    style = BlockStyle(8, 0.0, Init(), Init(), Init(), skip_scale=0.5**0.5, resample_proj=True, adaptive_scale=False)
    block = UNetBlock(8, 16, style, up=up, attention=True).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x, emb = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x, emb)
        block.fold(biases=biases)
        torch.testing.assert_close(block(x, emb), expected, rtol=1e-12, atol=1e-12)
    assert (block.skip.bias is None) == biases
