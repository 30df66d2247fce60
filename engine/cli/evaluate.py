"""``edm-engine evaluate``: how many samples a classifier of real images recognises as the class asked for."""

from pathlib import Path
from typing import Any

import click
import torch

from .. import checkpoints
from ..engine import Engine
from ..metrics import load_classifier
from ..training.data import FASHION_MNIST_CLASSES
from .guidance_options import guidance_options, take_guidance
from .sampler_options import sampler_options, take_sampler
from .types import DTYPES


@click.command()
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option("--images", type=int, default=1000, show_default=True, help="Seeds 0 to images - 1, classes in turn.")
@sampler_options
@guidance_options
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--batch", type=int, default=100, show_default=True)
@click.option("--record", is_flag=True, help="Write the figure into the metadata of MODEL, which must be a file.")
def evaluate(model: str, images: int, dtype: str, batch: int, record: bool, **options: Any) -> None:
    """Draw images class by class in turn and count those the shipped Fashion-MNIST classifier recognises."""
    if record and not Path(model).is_file():
        raise click.UsageError(f"--record needs a file as --model, not {model!r}")
    given = "".join(f" --{name.replace('_', '-')} {_typed(v)}" for name, v in options.items() if v is not None)
    denoiser = checkpoints.load(model)
    guidance = take_guidance(options, denoiser, images)
    sampler = take_sampler(options)
    engine = Engine(denoiser, sampler=sampler, guidance=guidance, dtype=getattr(torch, dtype), batch_size=batch)
    if engine.denoiser.img_shape != (1, 32, 32) or engine.denoiser.label_dim != 10:
        raise click.UsageError(f"model {model!r} draws {engine.denoiser.img_shape}; the classifier knows Fashion-MNIST")
    classifier = load_classifier()
    labels = torch.arange(images) % 10
    hits = torch.zeros(images, dtype=torch.bool)
    for positions, drawn in engine.stream(seeds=range(images), class_labels=labels, progress=True):
        at = list(positions)
        hits[at] = classifier.classify(drawn.clamp(-1, 1)) == labels[at]
    asked, right = torch.bincount(labels, minlength=10), torch.bincount(labels[hits], minlength=10)
    for name, good, count in zip(FASHION_MNIST_CLASSES, right.tolist(), asked.tolist(), strict=True):
        click.echo(f"{name:<10} {good:>5} of {count}")
    figure = f"{right.sum().item()} of {images} ({100 * right.sum().item() / images:.1f}%)"
    click.echo(f"recognised {figure}")
    if record:
        how = f"edm-engine evaluate --images {images} --dtype {dtype}{given}"
        checkpoints.annotate(Path(model), {"recognised": figure, "recognised_by": how})


def _typed(value: object) -> str:
    """A parameter's value as one would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
