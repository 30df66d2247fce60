"""A training run in a folder of its own: it goes on from the checkpoint there, and ends in weights that name it."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import checkpoints
from ..denoiser import Denoiser
from ..progress import progress_bar
from .data import FASHION_MNIST_CLASSES, fashion_mnist
from .presets import chosen, half_dtype
from .trainer import Log, TrainConfig, Trainer


def train_to(
    out: Path,
    config: TrainConfig,
    images: Tensor,
    labels: Tensor,
    named: str,
    *,
    device: str = "cpu",
    compile: bool = False,
    save_every: float = 180,
) -> Path:
    """Train on Fashion-MNIST, images [N, 1, 32, 32] with labels [N]; writes checkpoint.pt, log.jsonl and
    ema.safetensors, whose path it returns, every ``save_every`` seconds, at the end and when it is interrupted.

    named: the options of `edm-engine train` that choose the config, for the weights' notes.
    Raises ValueError where ``out`` holds a checkpoint of another config.
    """
    trainer = Trainer(config, images, labels, device=device, compile=compile)
    checkpoint, weights = out / "checkpoint.pt", out / "ema.safetensors"
    if checkpoint.exists():
        trainer.resume(checkpoint)
        tqdm.write(f"resuming at {trainer.images_seen} images")
    out.mkdir(parents=True, exist_ok=True)
    trainer.ema.class_names = FASHION_MNIST_CLASSES
    log, saved = Log(out / "log.jsonl", images_seen=trainer.images_seen), time.monotonic()

    def save() -> None:
        log.flush()
        trainer.save(checkpoint)
        notes = {
            "training_command": _command(named, config, trainer.runs),
            "training_config": repr(asdict(config)),
            "images_seen": str(trainer.images_seen),
            "data": "Fashion-MNIST, 60,000 training images, MIT licence",
        }
        checkpoints.save(trainer.ema, weights, dtype=torch.float16, notes=notes)

    try:
        with progress_bar(config.images, "image", "training", initial=trainer.images_seen) as bar:
            for record in trainer.run():
                log.add(record, config.batch_size)
                bar.update(config.batch_size)
                if time.monotonic() - saved > save_every:
                    save()
                    saved = time.monotonic()
    except KeyboardInterrupt:
        save()
        tqdm.write(f"interrupted at {trainer.images_seen} images, saved to {checkpoint}")
        raise
    save()
    tqdm.write(f"wrote {weights}, {trainer.images_seen} images seen")
    return weights


def quick_network(preset: str, images: int, out: Path, data: Path, device: str = "cpu") -> Denoiser:
    """What ``edm-engine train --preset PRESET --quick --images IMAGES --out OUT`` makes, trained if it is not."""
    config = chosen(preset, quick=True, images=images, dtype=half_dtype(device))
    named = f"--preset {preset} --quick"
    return checkpoints.load(str(train_to(out, config, *fashion_mnist(data), named, device=device)))


def _command(named: str, config: TrainConfig, runs: list[tuple[int, int]]) -> str:
    """What repeats the training: one command, or several of which all but the last were stopped."""
    fixed = f"edm-engine train {named} --seed {config.seed} --batch {config.batch_size} --dtype {config.dtype}"
    stops = [f", stopped at {begun} and continued with " for begun, _ in runs[1:]] + [""]
    return "".join(f"{fixed} --images {images}{stop}" for (_, images), stop in zip(runs, stops, strict=True))
