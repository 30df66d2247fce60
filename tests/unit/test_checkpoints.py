"""Checkpoints: what is saved is what is loaded, and a wrong file is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import save_file

import engine
from engine.checkpoints import annotate, read_metadata

CONFIG = {
    "class_name": "EDMPrecond",
    "img_resolution": 16,
    "img_channels": 1,
    "label_dim": 3,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "augment_dim": 9,
}


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return engine.Denoiser.from_config(CONFIG).eval()


def test_round_trip(denoiser, tmp_path):
    path = tmp_path / "net.safetensors"
    denoiser.class_names = ("a", "b", "c")
    engine.save(denoiser, path, notes={"author": "me"})
    annotate(path, {"score": "9 of 10"})
    loaded = engine.load(path)
    assert loaded.class_names == ("a", "b", "c")
    assert read_metadata(path)["score"] == "9 of 10"
    assert not loaded.training
    assert loaded.config == CONFIG
    assert read_metadata(path)["author"] == "me"
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(loaded(x, 0.5), denoiser(x, 0.5))
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_half_precision_files_load_as_float32(denoiser, tmp_path):
    engine.save(denoiser, tmp_path / "net.safetensors", dtype=torch.float16)
    loaded = engine.load(tmp_path / "net.safetensors")
    assert loaded.dtype == torch.float32
    for key, value in denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float())


def test_errors(denoiser, tmp_path):
    with pytest.raises(ValueError, match="'mnist' is neither a file nor a shipped network; shipped: fashion-mnist"):
        engine.load("mnist")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(bytes(8) + b"{}")
    with pytest.raises(ValueError, match=r"junk.safetensors is not a safetensors file"):
        engine.load(junk)
    junk.write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"junk.safetensors is none of: safetensors of edm-engine, "):
        engine.load(junk)
    save_file({"a": torch.zeros(1)}, junk)
    with pytest.raises(ValueError, match="format None; allowed"):
        engine.load(junk)
    engine.save(denoiser, junk)
    metadata = read_metadata(junk) | {"config": json.dumps(CONFIG | {"model_channels": 16})}
    save_file(denoiser.state_dict(), junk, metadata)
    with pytest.raises(ValueError, match="tensors do not fit the config"):
        engine.load(junk)
    with pytest.raises(ValueError, match="device is 'foo'; allowed: 'cpu'"):
        engine.load("fashion-mnist", device="foo")
    with pytest.raises(ValueError, match=r"config is \[1\]; allowed: a dict, or None"):
        engine.load(junk, config=[1])
    with pytest.raises(ValueError, match="denoiser has no config"):
        engine.save(engine.Denoiser(denoiser.model, denoiser.preconditioning), junk)
    with pytest.raises(ValueError, match="denoiser is one that an engine has prepared; allowed: the denoiser it was"):
        engine.save(engine.Engine(denoiser).denoiser, junk)
    with pytest.raises(ValueError, match=r"dtype is torch.int8; allowed: a floating dtype"):
        denoiser.save(junk, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"^denoiser is a PosixPath; allowed: an engine.Denoiser"):
        engine.save(junk, denoiser)
