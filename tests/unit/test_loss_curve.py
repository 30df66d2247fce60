"""Loss by noise level, brightness, and the commands that show them."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import engine
from engine import preconditioning as pre
from engine.checkpoints import read_metadata
from engine.metrics.intervals import BLOCKS, jackknife
from engine.training import DiscreteLoss, EDMLoss, VELoss
from engine.training.brightness import brightness, compare, slope, summary
from engine.training.loss_curve import density, levels, loss_curve
from tests.unit.test_cli import run
from tests.unit.test_training_data import write_idx

CLASSES = np.arange(10).repeat(4).astype(np.uint8)


class Ideal(torch.nn.Module):
    """The best denoiser of data N(0, sigma_data^2) in EDM's preconditioning: F = 0."""

    def forward(self, x, c_noise):
        return x * 0


def test_the_curve_of_the_ideal_denoiser_is_known():
    """D = c_skip x leaves |D - y|^2 = sigma^2 sigma_data^2 / (sigma^2 + sigma_data^2): weighted, 1 everywhere."""
    denoiser = engine.Denoiser(Ideal(), pre.EDM(), img_shape=(1, 8, 8))
    images = 0.5 * torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas = levels(denoiser, 7)
    assert sigmas[0] == pytest.approx(0.002)
    assert sigmas[-1] == pytest.approx(80)
    assert np.diff(np.log(sigmas)) == pytest.approx([math.log(40_000) / 6] * 6)
    for level in loss_curve(denoiser, EDMLoss(), images, None, sigmas):
        assert level.loss == pytest.approx(1, abs=0.03)
        assert level.error == pytest.approx(level.sigma**2 * 0.25 / (level.sigma**2 + 0.25), rel=0.03)
        assert level.std == pytest.approx(math.sqrt(2 / 64), rel=0.15)  # of a mean of 64 squares of normals


def test_levels_are_those_that_the_network_knows():
    denoiser = engine.Denoiser(Ideal(), pre.Discrete(T=10, zero_snr=True, prediction="v"), img_shape=(1, 8, 8))
    known = denoiser.preconditioning.levels()[:-1].tolist()
    assert set(levels(denoiser, 40)) <= set(known)
    assert levels(engine.Denoiser(Ideal(), pre.VE(), img_shape=(1, 8, 8)), 5)[0] == pytest.approx(0.02)
    with pytest.raises(ValueError, match="sigmas is 1"):
        levels(denoiser, 1)


def test_densities():
    edges = torch.linspace(math.log(0.02), math.log(80), 31)
    middles = (edges[1:] + edges[:-1]) / 2
    normal = (-((middles + 1.2) ** 2) / 2 / 1.2**2).exp() / 1.2 / math.sqrt(2 * math.pi)
    torch.testing.assert_close(density(EDMLoss(), edges).float(), normal, rtol=0, atol=0.01)
    flat = torch.full([30], 1 / math.log(100 / 0.02))
    torch.testing.assert_close(density(VELoss(), edges).float(), flat, rtol=0, atol=0.01)
    infinite = DiscreteLoss(pre.Discrete(T=10, zero_snr=True, prediction="v"))
    assert (density(infinite, torch.tensor([-20.0, 20.0])) * 40).item() == pytest.approx(0.9, abs=0.01)


def data(tmp_path):
    """Forty training images, brighter from class to class."""
    pixels = np.random.default_rng(0).integers(0, 60, (40, 28, 28), dtype=np.uint8) + (CLASSES * 15)[:, None, None]
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", CLASSES)
    return tmp_path


def test_loss_curve_from_the_command_line(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra figures)")
    out, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    given = ["--data", data(tmp_path), "--sigmas", 3, "--json", out, "--plot", picture]
    assert run(monkeypatch, "loss-curve", "--images", 8, *given) == 0
    assert "untrained" in capsys.readouterr().out
    table = json.loads(out.read_text())
    trained, before = table["curves"]["trained"], table["curves"]["before training"]
    assert [level["sigma"] for level in trained] == pytest.approx([0.002, 0.4, 80])
    assert trained[1]["loss"] < 0.7 * before[1]["loss"]
    assert table["provenance"]["loss"] == {"class": "EDMLoss", "P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}
    with Image.open(picture) as drawn:
        assert drawn.size == (630, 378)
    assert run(monkeypatch, "loss-curve", "--images", 41, *given) == 2
    assert "--images is 41; allowed: 2 to 40" in capsys.readouterr().err


def test_train_and_go_on_from_the_command_line(monkeypatch, tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--data", data(tmp_path), "--out", out, "--quick", "--batch", 8, "--dtype", "float32"]
    assert run(monkeypatch, "train", *given, "--loss", "vp", "--images", 8) == 0
    assert run(monkeypatch, "train", *given, "--loss", "vp", "--images", 16) == 0
    assert "resuming at 8 images" in capsys.readouterr().out
    denoiser, notes = engine.load(out / "ema.safetensors"), read_metadata(out / "ema.safetensors")
    assert denoiser.preconditioning == pre.VP()
    assert notes["images_seen"] == "16"
    fixed = "edm-engine train --preset fashion-mnist --loss vp --quick --seed 0 --batch 8 --dtype float32 --images"
    assert notes["training_command"] == f"{fixed} 8, stopped at 8 and continued with {fixed} 16"
    assert run(monkeypatch, "train", *given, "--loss", "ve", "--images", 16) == 2
    assert "was trained with another network, loss" in capsys.readouterr().err


def test_zero_snr_from_the_command_line(monkeypatch, tmp_path, capsys):
    table, out = tmp_path / "table.json", tmp_path / "runs"
    given = ["--data", data(tmp_path), "--images", 32, "--out", out, "--per-class", 20, "--steps", 1, "--json", table]
    assert run(monkeypatch, "zero-snr", *given) == 0
    assert "usual: slope" in capsys.readouterr().out
    written = json.loads(table.read_text())
    rows = written["rows"]
    assert [(row["trained"], row["class"]) for row in rows[:11:10]] == [("zero snr", "T-shirt"), ("usual", "T-shirt")]
    assert len(rows) == 20
    assert all(row["interval"][0] < row["mean_brightness_samples"] < row["interval"][1] for row in rows)
    assert written["provenance"]["command"] == "edm-engine zero-snr --images 32 --per-class 20 --steps 1"
    for preset, zero_snr in (("zero-snr", True), ("usual-snr", False)):
        network = engine.load(out / preset / "ema.safetensors")
        assert network.preconditioning == pre.Discrete(scale=0.25, prediction="v", zero_snr=zero_snr)


def test_brightness_of_samples_and_data():
    images = torch.stack([torch.full([1, 4, 4], value) for value in (-1.5, 0.2)])
    assert brightness(images).tolist() == pytest.approx([-1, 0.2])

    class Flat(torch.nn.Module):  # every sample of class c is 0.1 c - 0.5, whatever the noise
        label_dim = 3

        def forward(self, x, c_noise, class_labels):
            return (class_labels @ torch.arange(3.0) * 0.1 - 0.5)[:, None, None, None].expand_as(x)

    denoiser = engine.Denoiser(Flat(), pre.Direct(sigma_min=0.01, sigma_max=10), img_shape=(1, 4, 4))
    labels = torch.arange(3).repeat(5)
    real = (labels * 0.2 - 0.6)[:, None, None, None].expand(15, 1, 4, 4)
    given = {"sampler": engine.samplers.ddim(2), "per_class": 20, "classes": ("a", "b", "c")}
    rows = list(compare("usual", engine.Engine(denoiser), real, labels, **given))
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert [row["mean_brightness_samples"] for row in rows] == pytest.approx([-0.5, -0.4, -0.3])
    assert [row["mean_brightness_data"] for row in rows] == pytest.approx([-0.6, -0.4, -0.2])
    assert rows[0]["interval"] == pytest.approx([-0.5, -0.5])
    found = summary(rows)
    assert (found["slope"], found["mean_difference"]) == pytest.approx((0.5, 0.2 / 3))
    assert found["interval"] == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="per_class is 3"):
        list(compare("usual", engine.Engine(denoiser), real, labels, **{**given, "per_class": 3}))


def test_the_interval_of_a_slope_is_that_of_the_fit_over_blocks():
    """Against numpy's fit of the classes' means, with each block of samples left out of every class."""
    generator = np.random.default_rng(3)
    real = np.array([-0.8, -0.5, -0.45, -0.3])
    drawn = 0.6 * real[:, None] - 0.1 + 0.05 * generator.standard_normal((4, 40))
    without = [np.delete(drawn, range(4 * block, 4 * block + 4), axis=1) for block in range(BLOCKS)]
    rows = [
        {
            "mean_brightness_data": real[c],
            "mean_brightness_samples": drawn[c].mean(),
            "without": [left[c].mean() for left in without],
        }
        for c in range(4)
    ]
    fitted, each = slope(rows)
    assert fitted == pytest.approx(np.polyfit(real, drawn.mean(1), 1)[0])
    assert each == pytest.approx([np.polyfit(real, left.mean(1), 1)[0] for left in without])
    low, high = summary(rows)["interval"]
    assert (high - low) / 2 == pytest.approx(jackknife(each))
    assert low < 0.6 < high
