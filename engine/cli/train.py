"""``edm-engine train`` and ``train-classifier``: the two networks that ship, from the real images."""

from pathlib import Path

import click

from ..metrics import classifier as classifiers
from ..prepare import find_device
from ..training import fashion_mnist
from ..training.data import FASHION_MNIST
from ..training.presets import LOSSES, PRESETS, chosen, half_dtype
from ..training.run import train_to

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
@click.option(
    "--save-every", type=click.FloatRange(min=0), default=180, show_default=True, help="Seconds between checkpoints."
)
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
    find_device(device)  # before the data is read
    dtype = half_dtype(device) if dtype == "auto" else dtype
    config = chosen(preset, loss=loss, quick=quick, images=images, batch_size=batch, seed=seed, dtype=dtype)
    named = f"--preset {preset}" + (f" --loss {loss}" if loss else "") + (" --quick" if quick else "")
    faster = not quick if compile is None else compile
    train_to(out, config, *fashion_mnist(data), named, device=device, compile=faster, save_every=save_every)


@click.command()
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
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
