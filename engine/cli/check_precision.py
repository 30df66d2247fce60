"""``edm-engine check-precision``: what half precision costs, layer by layer and in images."""

import click
import torch

from .. import checkpoints
from ..engine import Engine
from ..probe import some_labels
from ..samplers import edm
from ..verify import precision
from .types import DTYPES

_YARDSTICK = 1.5  # times plain torch's error in the same dtype


@click.command("check-precision")
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the network.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=4, show_default=True, help="Drawn, and looked at.")
@click.option("--steps", type=click.IntRange(min=2), default=18, show_default=True, help="Heun steps of the images.")
def check_precision(model: str, dtype: str, device: str, images: int, steps: int) -> None:
    """Compare every layer in half precision with float64, and the images of a few seeds.

    Errors are root mean squares, of the exact output's size, over several noise levels: of torch as it is, and of what
    an engine runs. Exit status 1 if the engine's at the network's end is more than 1.5 times torch's, or not finite.
    """
    denoiser, kind = checkpoints.load(model), getattr(torch, dtype)
    labels = some_labels(denoiser, images)
    drawn = Engine(denoiser, device=device).sample(seeds=range(images), class_labels=labels, sampler=edm(steps))
    found = precision.layers(denoiser, kind, device, drawn.cpu())
    room = torch.finfo(kind).max
    click.echo(f"{'layer':<28}{'torch':>10}{'engine':>10}{'ratio':>7}{'worst':>10}{'largest':>10}")
    for layer in found:
        ratio = f"{layer.prepared / layer.plain:.2f}" if layer.plain else "-"
        over = "  overflows" if layer.largest > room else ""
        errors = f"{layer.plain:>10.2e}{layer.prepared:>10.2e}{ratio:>7}{layer.worst:>10.2e}"
        click.echo(f"{layer.name:<28}{errors}{layer.largest:>10.3g}{over}")
    apart = precision.samples(denoiser, kind, device, images, steps)
    click.echo(
        f"images of {images} seeds, {steps} Heun steps, against a float64 network: {apart.rms:.2e} root mean square of "
        f"[-1, 1]; {apart.mean_levels:.2f} of 255 levels on average, {apart.most_levels} at most"
    )
    end = found[-1]
    if not end.prepared <= _YARDSTICK * end.plain:
        raise click.exceptions.Exit(1)
