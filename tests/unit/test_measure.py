"""FLOPs and memory from shapes, and the commands that show and convert checkpoints."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import engine
from engine.measure import measure
from tests.edm_layout import dump, snapshot
from tests.fuzz.make_seeds import CONFIG
from tests.unit.test_cli import run
from tests.unit.test_original_checkpoints import ADM_SAYS, adm


class TwoConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x, c_noise):
        hidden = self.first(x)
        return self.second(hidden.relu())


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_costs_by_hand(dtype, width):
    network = TwoConvolutions()
    cost = measure(engine.Denoiser(network, engine.preconditioning.EDM(), img_shape=(3, 8, 8)), dtype)
    assert cost.parameters == 16 * 27 + 16 + 48 + 3
    assert cost.weight_bytes == width * cost.parameters
    assert cost.flops == 2 * 64 * (16 * 27 + 48)
    hidden, image = width * 16 * 64, width * 3 * 64
    assert cost.activation_bytes == image + 2 * hidden + image  # the input, two hidden images, and the output
    assert cost.memory(10) == cost.weight_bytes + 10 * cost.activation_bytes
    assert network.first.weight.device.type == "cpu"
    assert network.first.weight.dtype == torch.float32


def test_flops_are_those_of_a_real_evaluation():
    denoiser = engine.load("fashion-mnist")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser.model(torch.zeros(1, 1, 32, 32), torch.zeros(1), torch.zeros(1, 10))
    assert measure(denoiser).flops == counter.get_total_flops()


def test_attention_needs_no_matrix_of_weights():
    """Twice the side is four times the memory, where a matrix of all pairs of pixels would be sixteen times."""
    config = CONFIG | {"model_channels": 16}
    small, large = (
        measure(engine.Denoiser.from_config(config | {"img_resolution": size, "attn_resolutions": [size]}))
        for size in (32, 64)
    )
    assert large.activation_bytes < 4.5 * small.activation_bytes


def test_info(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "info", "fashion-mnist", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    cost = measure(engine.load("fashion-mnist"))
    assert facts["parameters"] == cost.parameters == 3_003_681
    assert facts["flops_per_evaluation"] == cost.flops
    assert facts["memory"]["float32"]["64"] == cost.memory(64)
    assert facts["sigma_range"] == [0.0, "inf"]
    assert facts["samplers"][0] == {"sampler": "edm --steps 18", "evaluations": 35}
    (tmp_path / "net.pkl").write_bytes(dump(snapshot(engine.Denoiser.from_config(CONFIG))))
    assert run(monkeypatch, "info", tmp_path / "net.pkl") == 0
    printed = capsys.readouterr().out
    assert "architecture     SongUNet, images of 1x4x4\n" in printed
    assert "sigma range      0.0 to inf" in printed
    assert "batch 256: 0.7 MiB" in printed


@pytest.mark.parametrize(
    ("kind", "count", "first"),
    [
        ({"class_name": "VPPrecond"}, 3, "edm --steps 18"),
        ({"class_name": "iDDPMPrecond", "M": 100}, 2, "edm --steps 18"),
        ({"class_name": "DiscretePrecond"}, 4, "ddim --steps 50 --timesteps trailing"),
        ({"class_name": "DiscretePrecond", "zero_snr": True, "prediction": "v"}, 4, "ddim --steps 50 --timesteps trai"),
    ],
)
def test_samplers_that_info_recommends_are_asked_for_like_that(monkeypatch, tmp_path, capsys, kind, count, first):
    path = tmp_path / "net.safetensors"
    engine.Denoiser.from_config(CONFIG | kind).save(path)
    assert run(monkeypatch, "info", path, "--json") == 0
    samplers = json.loads(capsys.readouterr().out)["samplers"]
    assert len(samplers) == count
    assert samplers[0]["sampler"].startswith(first)
    for each in samplers:
        assert run(monkeypatch, "plan", "--model", path, "--sampler", *each["sampler"].split()) == 0
        assert f"{each['evaluations']} network evaluations" in capsys.readouterr().out


def test_convert(monkeypatch, tmp_path, capsys):
    denoiser = engine.Denoiser.from_config(CONFIG)
    (tmp_path / "net.pkl").write_bytes(dump(snapshot(denoiser)))
    assert run(monkeypatch, "convert", tmp_path / "net.pkl", tmp_path / "net.safetensors") == 0
    assert "parameters in float32, written to" in capsys.readouterr().out
    for key, value in engine.load(tmp_path / "net.safetensors").state_dict().items():
        assert torch.equal(value, denoiser.state_dict()[key])
    half = tmp_path / "half.safetensors"
    assert run(monkeypatch, "convert", tmp_path / "net.pkl", half, "--dtype", "float16") == 0
    assert torch.equal(engine.load(half).model.map_layer0.weight, denoiser.model.map_layer0.weight.half().float())
    assert engine.checkpoints.read_metadata(half)["converted_from"] == "net.pkl"


def test_convert_asks_for_what_a_file_does_not_say(monkeypatch, tmp_path, capsys):
    torch.save(adm().state_dict(), tmp_path / "adm.pt")
    target = tmp_path / "adm.safetensors"
    assert run(monkeypatch, "convert", tmp_path / "adm.pt", target) == 2
    assert "give in config: img_resolution" in capsys.readouterr().err
    assert run(monkeypatch, "convert", tmp_path / "adm.pt", target, "--config", "[1]") == 2
    assert "allowed: a JSON object such as" in capsys.readouterr().err
    assert not target.exists()
    assert run(monkeypatch, "convert", tmp_path / "adm.pt", target, "--config", json.dumps(ADM_SAYS)) == 0
    assert engine.load(target).preconditioning == engine.preconditioning.IDDPM()
