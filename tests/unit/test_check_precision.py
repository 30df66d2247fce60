"""What half precision costs, layer by layer."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import engine
from engine.cli import cli
from engine.networks.native_ops import NATIVE
from engine.verify import precision
from tests.helpers import small_unet, wavy

NETWORK = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "label_dim": 3}
CONFIG = {"class_name": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 16, "img_channels": 1} | NETWORK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_layer_within_the_yardstick(dtype):
    found = precision.layers(small_unet(3), dtype, "cpu", torch.zeros(3, 1, 16, 16))
    names = [layer.name for layer in found]
    assert names[-1] == "output"
    assert {"map_layer0", "enc.16x16_conv", "enc.8x8_block0", "dec.8x8_in0", "dec.16x16_aux_norm"} <= set(names)
    assert not any("conv0" in name for name in names)  # a block is one layer
    eps = torch.finfo(dtype).eps
    for layer in found[names.index("enc.16x16_conv") :]:
        assert layer.prepared <= 1.5 * layer.plain, layer
        assert 0 < layer.prepared < 20 * eps, layer
        assert layer.worst >= layer.prepared
    assert all(layer.prepared < 1e-6 for layer in found[: names.index("enc.16x16_conv")])


def test_a_wrong_operation_shows_where_it_begins(monkeypatch):
    right = NATIVE.group_norm

    def wrong(x, *arguments, **around):
        y, past = right(x, *arguments, **around)
        return (y * 1.1 if x.shape[2] == 8 else y), past

    monkeypatch.setattr("engine.prepare._ops_for", lambda device: replace(NATIVE, group_norm=wrong))
    found = precision.layers(small_unet(), torch.bfloat16, "cpu", torch.zeros(2, 1, 16, 16))
    bad = [layer.name for layer in found if layer.prepared > 1.5 * layer.plain and layer.prepared > 1e-6]
    assert bad[0].startswith("enc.8x8")


def test_other_networks_are_one_layer():
    (layer,) = precision.layers(
        wavy(engine.preconditioning.EDM(), (1, 4, 4)), torch.bfloat16, "cpu", torch.zeros(2, 1, 4, 4)
    )
    assert layer.name == "output"
    assert 1e-4 < layer.prepared < 1e-2


def test_command(tmp_path):
    torch.manual_seed(0)
    denoiser = engine.Denoiser.from_config(CONFIG)
    for p in denoiser.parameters():
        torch.nn.init.normal_(p, std=0.05)
    denoiser.save(tmp_path / "net.safetensors")
    command = ["check-precision", "--model", str(tmp_path / "net.safetensors"), "--images", "2", "--steps", "2"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == ["layer", "torch", "engine", "ratio", "worst", "largest"]
    assert "images of 2 seeds, 2 Heun steps, against a float64 network" in lines[-1]
    with torch.no_grad():
        denoiser.model.get_submodule("enc.8x8_block0").conv1.bias.add_(1e6)
    denoiser.save(tmp_path / "net.safetensors")
    done = CliRunner().invoke(cli, [*command, "--dtype", "float16"])
    assert "enc.8x8_block0" in next(line for line in done.output.splitlines() if line.endswith("overflows"))
    assert done.exit_code != 0
