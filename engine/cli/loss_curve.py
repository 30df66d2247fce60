"""``edm-engine loss-curve``: the loss of a network at every noise level."""

from dataclasses import asdict
from pathlib import Path

import click
import torch

from .. import checkpoints
from ..denoiser import Denoiser
from ..record import write as write_record
from ..training import fashion_mnist, loss_for
from ..training.loss_curve import levels, loss_curve, plot
from .train import data_option
from .types import OutFile


@click.command("loss-curve")
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option(
    "--images", type=click.IntRange(2), default=500, show_default=True, help="How many, the first of the data."
)
@click.option(
    "--sigmas", type=click.IntRange(2), default=30, show_default=True, help="Noise levels, evenly in ln sigma."
)
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the noise, and of the untrained network.",
)
@click.option("--plot", "picture", type=OutFile(".png"), help="Also draw a PNG.")
@click.option("--json", "out", type=OutFile(), help="Also write the table as JSON.")
@data_option
def loss_curve_command(
    model: str, images: int, sigmas: int, split: str, seed: int, picture: Path | None, out: Path | None, data: Path
) -> None:
    """Measure the loss of MODEL on Fashion-MNIST by noise level, as trained and before any training, with the weighting
    and the distribution of noise levels that go with its preconditioning (Figure 5a of the EDM paper)."""
    denoiser = checkpoints.load(model)
    if denoiser.img_shape != (1, 32, 32) or denoiser.label_dim not in (0, 10):
        raise click.UsageError(f"model {model!r} draws {denoiser.img_shape}; the data is Fashion-MNIST, (1, 32, 32)")
    loss, at = loss_for(denoiser.preconditioning), levels(denoiser, sigmas)
    real, classes = fashion_mnist(data, split)
    if images > len(real):
        raise click.UsageError(f"--images is {images}; allowed: 2 to {len(real)}")
    one_hot = torch.nn.functional.one_hot(classes[:images], 10).float() if denoiser.label_dim else None
    networks = {"trained": denoiser, "before training": _untrained(denoiser, seed)}
    curves = {
        name: loss_curve(network.eval(), loss, real[:images], one_hot, at, seed=seed)
        for name, network in networks.items()
    }
    click.echo(f"{'sigma':>10}{'|D - y|^2':>12}{'loss':>10}{'std':>10}{'untrained':>11}")
    for level, before in zip(curves["trained"], curves["before training"], strict=True):
        click.echo(f"{level.sigma:>10.4g}{level.error:>12.4g}{level.loss:>10.4g}{level.std:>10.3g}{before.loss:>11.4g}")
    command = f"edm-engine loss-curve --model {model} --images {images} --sigmas {sigmas} --split {split} --seed {seed}"
    if out is not None:
        tables = {name: [asdict(level) for level in curve] for name, curve in curves.items()}
        write_record(out, {"provenance": {"command": command, "loss": loss}, "curves": tables})
    if picture is not None:
        plot(picture, loss, curves, command)


def _untrained(denoiser: Denoiser, seed: int) -> Denoiser:
    """The network as its training began."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Denoiser.from_config(denoiser.config or {})
