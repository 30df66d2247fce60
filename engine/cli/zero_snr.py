"""``edm-engine zero-snr``: what zero terminal SNR is good for, tried out."""

import itertools
from pathlib import Path
from typing import Any

import click

from .. import samplers
from ..engine import Engine
from ..record import write as write_record
from ..training.brightness import TRAINED, compare, summary
from ..training.data import FASHION_MNIST_CLASSES, fashion_mnist
from ..training.run import quick_network
from .train import data_option
from .types import OutFile


@click.command("zero-snr")
@click.option("--images", type=click.IntRange(1), default=16_000, show_default=True, help="Of each training run.")
@click.option(
    "--per-class", type=click.IntRange(20), default=40, show_default=True, help="Samples of each class to measure."
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Of DDIM, at trailing timesteps."
)
@click.option("--out", type=click.Path(path_type=Path), default="runs/zero-snr", show_default=True)
@click.option("--json", "table", type=OutFile(), default="zero-snr.json")
@data_option
def zero_snr_command(images: int, per_class: int, steps: int, out: Path, table: Path, data: Path) -> None:
    """Train two small networks, with zero terminal SNR and without, and compare how bright their samples are.

    Both predict v and are the same but for the betas. Training goes on from the checkpoints in OUT.
    """
    sampler = samplers.ddim(steps, discretization="trailing")
    real, labels = fashion_mnist(data)
    rows: list[dict[str, Any]] = []
    for trained, preset in TRAINED.items():
        drawing = Engine(quick_network(preset, images, out / preset, data))
        rows += compare(
            trained, drawing, real, labels, sampler=sampler, per_class=per_class, classes=FASHION_MNIST_CLASSES
        )
    found = {trained: summary(list(some)) for trained, some in itertools.groupby(rows, lambda row: row["trained"])}
    command = f"edm-engine zero-snr --images {images} --per-class {per_class} --steps {steps}"
    provenance = {"command": command, "sampler": sampler, "data": "Fashion-MNIST, 60,000 training images, MIT licence"}
    write_record(table, {"provenance": provenance, "rows": rows, "summary": found})
    for row in rows:
        low, high = row["interval"]
        click.echo(
            f"{row['trained']:<9} {row['class']:<9} {row['mean_brightness_samples']:>7.3f} ({low:.3f} to {high:.3f}), "
            f"data {row['mean_brightness_data']:.3f}"
        )
    for trained, figures in found.items():
        low, high = figures["interval"]
        apart = figures["mean_difference"]
        click.echo(f"{trained}: slope {figures['slope']:.3f} ({low:.3f} to {high:.3f}), mean difference {apart:.3f}")
