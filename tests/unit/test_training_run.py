"""A run in a folder: what an interruption leaves."""

import pytest
import torch

import engine
from engine.training.run import train_to
from engine.training.trainer import TrainConfig, Trainer
from tests.unit.test_training import NETWORK

CONFIG = TrainConfig(NETWORK | {"label_dim": 10}, batch_size=8, images=48, warmup_images=8, dtype="float32")


def test_an_interrupted_run_is_saved_and_can_be_sampled(tmp_path, monkeypatch, capsys):
    images, labels = torch.rand(32, 1, 16, 16) * 2 - 1, torch.arange(32) % 10
    run = Trainer.run

    def stopped(self):
        for step, record in enumerate(run(self)):
            yield record
            if step == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_to(tmp_path, CONFIG, images, labels, "--preset x", compile=False)
    assert "interrupted at 16 images, saved to" in capsys.readouterr().out
    drawn = engine.sample(engine.load(tmp_path / "ema.safetensors"), seeds=[1], sampler=engine.samplers.edm(steps=2))
    assert torch.isfinite(drawn).all()
    monkeypatch.setattr(Trainer, "run", run)
    train_to(tmp_path, CONFIG, images, labels, "--preset x", compile=False)
    assert "resuming at 16 images" in capsys.readouterr().out
