"""The network and the classifier that ship: small enough, documented, and as good as their cards say."""

import ast
import json
from pathlib import Path

import pytest
import torch

import engine
from engine.checkpoints import read_metadata, shipped
from engine.metrics import load_classifier
from engine.metrics.classifier import WEIGHTS
from engine.training.data import FASHION_MNIST, fashion_mnist
from engine.training.presets import FASHION_MNIST as PRESET

FOLDER = Path(engine.__file__).parent / "weights"


def test_files_are_small_and_documented():
    path = FOLDER / "fashion-mnist.safetensors"
    assert shipped() == ["fashion-mnist"]
    assert path.stat().st_size <= 12e6
    assert WEIGHTS.stat().st_size <= 1e6
    metadata = read_metadata(path)
    assert json.loads(metadata["config"]) == PRESET.network
    assert metadata["training_command"].startswith("edm-engine train --preset fashion-mnist")
    assert "MIT" in metadata["data"]
    card = (FOLDER / "fashion-mnist.md").read_text()
    assert metadata["images_seen"] in card.replace(",", "")
    assert "edm-engine evaluate --model fashion-mnist --images 1000" in card
    assert metadata["recognised"] in card
    assert metadata["training_command"] in card
    config = ast.literal_eval(metadata["training_config"])
    facts = [f"Muon at {config['muon_lr']}", f"Adam at {config['adam_lr']}", f"batch {config['batch_size']},"]
    facts += [f"last {config['anneal']:.0%} of the run", f"half-life {config['ema_halflife_images']:,} images"]
    facts += [f"probability {config['augment']['p']},"]
    for fact in facts:
        assert fact in card, fact
    assert config["network"] == PRESET.network
    parameters = sum(p.numel() for p in engine.load("fashion-mnist").parameters())
    assert f"{parameters:,} parameters" in card


def test_samples_are_recognised():
    """A cheap form of the card's figure: 100 images of ten classes, 8 Heun steps; three standard errors below it."""
    right, of, *_ = read_metadata(FOLDER / "fashion-mnist.safetensors")["recognised"].replace("of", "").split()
    labels = torch.arange(100) % 10
    sampler = engine.samplers.edm(steps=8)
    images = engine.sample(engine.load("fashion-mnist"), seeds=range(100), class_labels=labels, sampler=sampler)
    recognised = (load_classifier().classify(images.clamp(-1, 1)) == labels).sum()
    assert recognised >= 100 * int(right) / int(of) - 3 * 100 * (0.25 / 100) ** 0.5
    # varied: two seeds of one class are different pictures
    by_class = images.reshape(10, 10, -1)
    assert (by_class[1:] - by_class[:-1]).abs().mean(-1).min() > 0.02


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_classifier_accuracy_on_real_images():
    images, labels = fashion_mnist(split="test")
    right = load_classifier().classify(images[:2000]) == labels[:2000]
    assert right.float().mean() > 0.9
