"""``edm-engine train`` and ``train-classifier``: the two networks that ship, from the real images."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from .. import checkpoints
from ..metrics import classifier as classifiers
from ..training import Log, TrainConfig, Trainer, fashion_mnist
from ..training.data import FASHION_MNIST, FASHION_MNIST_CLASSES
from ..training.presets import LOSSES, PRESETS, QUICK, with_loss

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=FASHION_MNIST,
    show_default=True,
    help="Folder with the four gzipped idx files of Fashion-MNIST.",
)


@click.command()
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="fashion-mnist", show_default=True)
@click.option("--loss", type=click.Choice(list(LOSSES)), help="With its preconditioning; the preset's if not given.")
@click.option("--quick", is_flag=True, help="A smaller network and a short run: a recognisable grid in minutes.")
@click.option("--images", type=int, help="How many images the run sees in all; the preset's if not given.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/fashion-mnist", show_default=True)
@click.option("--batch", type=int, help="Batch size; the preset's if not given.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--compile/--no-compile", default=None, help="torch.compile: a minute at the start; not if --quick.")
@click.option("--save-every", type=float, default=180, show_default=True, help="Seconds between checkpoints.")
@data_option
def train(
    preset: str,
    loss: str | None,
    quick: bool,
    images: int | None,
    out: Path,
    batch: int | None,
    seed: int,
    dtype: str,
    device: str,
    compile: bool | None,
    save_every: float,
    data: Path,
) -> None:
    """Train a network, or go on from the checkpoint in OUT; writes checkpoint.pt, log.jsonl and ema.safetensors."""
    chosen = PRESETS[preset] if loss is None else with_loss(PRESETS[preset], loss)
    given: dict[str, Any] = {"images": images, "batch_size": batch}
    given = (QUICK if quick else {}) | {name: value for name, value in given.items() if value is not None}
    given["network"] = chosen.network | given.get("network", {})
    config = replace(chosen, **given, seed=seed, dtype=_half(device) if dtype == "auto" else dtype)
    trainer = Trainer(config, *fashion_mnist(data), device=device, compile=not quick if compile is None else compile)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.resume(checkpoint)
        click.echo(f"resuming at {trainer.images_seen} images")
    out.mkdir(parents=True, exist_ok=True)
    log, saved = Log(out / "log.jsonl", images_seen=trainer.images_seen), time.monotonic()
    with tqdm(total=config.images, initial=trainer.images_seen, unit="image", desc="training") as bar:
        for record in trainer.run():
            log.add(record, config.batch_size)
            bar.update(config.batch_size)
            if time.monotonic() - saved > save_every:
                trainer.save(checkpoint)
                saved = time.monotonic()
    trainer.save(checkpoint)
    named = (f" --loss {loss}" if loss else "") + (" --quick" if quick else "")
    notes = {
        "training_command": _command(f"--preset {preset}{named}", config, trainer.runs),
        "training_config": repr(asdict(config)),
        "images_seen": str(trainer.images_seen),
        "data": "Fashion-MNIST, 60,000 training images, MIT licence",
    }
    trainer.ema.class_names = FASHION_MNIST_CLASSES
    checkpoints.save(trainer.ema, out / "ema.safetensors", dtype=torch.float16, notes=notes)
    click.echo(f"wrote {out / 'ema.safetensors'}, {trainer.images_seen} images seen")


@click.command()
@click.option("--epochs", type=int, default=8, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="runs/classifier.safetensors", show_default=True)
@data_option
def train_classifier(epochs: int, seed: int, out: Path, data: Path) -> None:
    """Train the small Fashion-MNIST classifier on the real training images and state its test accuracy."""
    test_images, test_labels = fashion_mnist(data, "test")
    for epoch, classifier in enumerate(classifiers.train_classifier(*fashion_mnist(data), epochs=epochs, seed=seed)):
        accuracy = (classifier.classify(test_images) == test_labels).double().mean().item()
        click.echo(f"epoch {epoch + 1}: {100 * accuracy:.2f}% of the 10,000 test images")
    notes = {
        "training_command": f"edm-engine train-classifier --epochs {epochs} --seed {seed}",
        "test_accuracy": f"{accuracy:.4f}",
        "data": "Fashion-MNIST, 60,000 training images, MIT licence",
    }
    classifiers.save_classifier(classifier, out, notes)
    click.echo(f"wrote {out}")


def _command(chosen: str, config: TrainConfig, runs: list[tuple[int, int]]) -> str:
    """What repeats the training: one command, or several of which all but the last were stopped."""
    fixed = f"edm-engine train {chosen} --seed {config.seed} --batch {config.batch_size} --dtype {config.dtype}"
    stops = [f", stopped at {begun} and continued with " for begun, _ in runs[1:]] + [""]
    return "".join(f"{fixed} --images {images}{stop}" for (_, images), stop in zip(runs, stops, strict=True))


def _half(device: str) -> str:
    """bfloat16 where the processor computes in it, float32 otherwise."""
    native = torch.device(device).type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"
