"""What the report measures of networks that it trains: that they are trained once, and the measures' own numbers."""

import pytest
import torch

import engine
from engine.report import Budget, Measurements, rescale, trained, zero_snr
from engine.report.trained import Trained
from engine.training import Trainer
from engine.training.brightness import compare
from engine.training.data import FASHION_MNIST_CLASSES, fashion_mnist
from tests.unit.test_cli import run
from tests.unit.test_loss_curve import data


@pytest.fixture
def budget(tmp_path, monkeypatch):
    """Trained for a step, sampled by one; as few images as intervals can be of."""
    monkeypatch.setattr(trained, "IMAGES", 32)
    monkeypatch.setattr(trained, "STEPS", 1)
    return Budget(images=20, batch=7, runs=tmp_path / "runs", data=data(tmp_path))


def test_points_are_of_networks_trained_once(budget):
    points = {
        (s["what"], s["trained"], s.get("weight"), s.get("rescale")): point
        for point in zero_snr.points(budget)
        if (s := point.settings)["what"] in ("brightness", "guidance")
    }
    assert len(points) == 2 + 7
    assert not budget.runs.exists()  # what there is to measure is listed without any work
    brightness = points["brightness", "usual", None, None].measure()["rows"]
    weights = budget.runs / "usual-snr-32" / "ema.safetensors"
    assert [path.name for path in budget.runs.iterdir()] == ["usual-snr-32"]
    usual = engine.load(weights)
    assert usual.model.label_dropout == 0.1
    drawing = engine.Engine(usual, dtype=torch.bfloat16, batch_size=7)
    sampler = engine.samplers.ddim(1, discretization="trailing")
    asked = {"sampler": sampler, "per_class": 20, "classes": FASHION_MNIST_CLASSES}
    assert brightness == list(compare("usual", drawing, *fashion_mnist(budget.data), **asked))

    strong, plain = (points["guidance", "zero snr", 7.5, phi].measure() for phi in (0.7, 0.0))
    zero = engine.Engine(engine.load(budget.runs / "zero-snr-32" / "ema.safetensors"), dtype=torch.bfloat16)
    for found, phi in ((strong, 0.7), (plain, 0.0)):
        guidance = engine.guidance.ClassifierFree(7.5, rescale=phi)
        labels = [seed % 10 for seed in range(20)]
        images = zero.sample(seeds=range(20), class_labels=labels, sampler=sampler, guidance=guidance)
        expected = rescale.exposure(images)
        assert {name: value["samples"] for name, value in found.items()} == pytest.approx(
            {name: value.mean().item() for name, value in expected.items()}, rel=1e-12
        )
        assert found["deviation"]["without"][0] == pytest.approx(expected["deviation"][2:].mean().item(), rel=1e-12)
        assert found["white"]["data"] == 0  # no pixel of the forty images is above 195 of 255
    assert strong["deviation"] != plain["deviation"]


def test_a_training_that_ended_is_not_gone_through_again(budget, monkeypatch):
    first = Trained(budget)
    assert first.engine("usual") is first.engine("usual")
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("trained again"))
    again = Trained(budget).engine("usual").denoiser
    pairs = zip(first.engine("usual").denoiser.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_section_is_measured_by_its_command(budget, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra figures)")
    out, kept = tmp_path / "page", tmp_path / "measurements"
    given = ["--runs", budget.runs, "--data", budget.data, "--out", out, "--measurements", kept, "--images", 20]
    assert run(monkeypatch, "report", "--measure", "zero-snr", *given) == 0
    measurements = Measurements.load(kept / "zero-snr.json")
    assert len(measurements.points) == 4 + 2 * 3 + 2 + 7
    assert str(tmp_path) not in (kept / "zero-snr.json").read_text()
    assert {path.name for path in out.glob("*.png")} == {"zero-snr.png", "brightness.png", "guidance-rescale.png"}
    section = (out / "report.html").read_text().split("<h2 id='zero-snr'>")[1].split("<h2")[0]
    assert section.count("class='verdict'") == 4
    assert "not measured" not in section
    assert "so far" not in section


def test_the_record_says_nothing_of_where_things_lie(tmp_path):
    assert Budget(runs=tmp_path, data=tmp_path).record() == Budget().record()
    assert Budget(**Budget(images=40).record()) == Budget(images=40)


def test_exposure_is_of_each_image_before_clamping():
    images = torch.full([2, 1, 4, 4], -1.0)
    images[0, 0, 0] = 1.5  # a quarter of the pixels
    images[1, 0, 0, 0] = 0.98
    found = rescale.exposure(images)
    assert found["deviation"].tolist() == pytest.approx([2.5 * (0.25 * 0.75) ** 0.5, 1.98 * (15 / 256) ** 0.5])
    assert found["white"].tolist() == [0.25, 1 / 16]
    assert found["clipped"].tolist() == [0.125, 0.0]
