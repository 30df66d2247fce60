"""``edm-engine report``: the papers' figures on a network, from measurements kept in files or made anew."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from ..report import SECTIONS, Budget, Measurements, Section, take
from ..report.page import write_page
from .train import data_option
from .types import DTYPES

_NAMES = [section.name for section in SECTIONS]


@click.command("report")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/report"),
    show_default=True,
    help="Where report.html and its PNGs go.",
)
@click.option(
    "--measurements",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench/results/report"),
    show_default=True,
    help="The folder of measurement files, one a section.",
)
@click.option(
    "--measure",
    "asked",
    type=click.Choice([*_NAMES, "all"]),
    multiple=True,
    help="First measure what is missing of a section, or of all; goes on where it was interrupted.",
)
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option("--images", type=click.IntRange(20), default=2000, show_default=True, help="Of a score.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the network.")
@click.option("--batch", type=click.IntRange(1), default=100, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="torch's threads; its default if not given.")
@click.option("--minutes", type=click.FloatRange(0), default=float("inf"), help="Begin no point after so long.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Budget.runs,
    show_default=True,
    help="Where networks lie that are trained to be measured; training goes on there.",
)
@data_option
def report_command(
    out: Path,
    measurements: Path,
    asked: tuple[str, ...],
    model: str,
    images: int,
    dtype: str,
    batch: int,
    device: str,
    threads: int | None,
    minutes: float,
    runs: Path,
    data: Path,
) -> None:
    """Draw the papers' figures and say what was found: one HTML page and its PNGs."""
    if threads is not None:
        torch.set_num_threads(threads)
    budget = Budget(model, images, dtype, batch, device, runs, data)
    chosen = [section for section in SECTIONS if section.name in asked or "all" in asked]
    _measure(chosen, measurements, budget, minutes)
    paths = {section.name: measurements / f"{section.name}.json" for section in SECTIONS}
    kept = {name: Measurements.load(path) for name, path in paths.items() if path.exists()}
    if not kept:
        raise ValueError(f"measurements is {measurements}; allowed: a folder that holds some, or --measure makes them")
    page = write_page(out, SECTIONS, kept)
    click.echo(f"{page}")


def _measure(sections: Sequence[Section], folder: Path, budget: Budget, minutes: float) -> None:
    typed = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in budget.record().items())
    until = time.monotonic() + 60 * minutes
    started = [(section, Measurements.of(folder, section.name, budget)) for section in sections]
    for section, measurements in started:
        command = f"edm-engine report --measure {section.name} {typed} --threads {torch.get_num_threads()}"
        left = take(measurements, section.points(budget), budget, command, until, click.echo)
        if left:
            click.echo(f"{section.name}: {left} points are still to be measured; the same command goes on")
