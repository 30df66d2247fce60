"""``edm-engine samplers`` and ``plan``: what there is, and what it computes."""

import inspect
from pathlib import Path
from typing import Any

import click

from .. import checkpoints
from ..backends import BACKENDS
from ..files import atomic_path
from ..plan import COLUMNS, Plan, Sampler
from ..preconditioning import EDM
from ..samplers import REGISTRY
from .plot import plot_plan
from .sampler_options import sampler_options, take_sampler
from .types import OutFile


@click.command("samplers")
@click.option("--markdown", is_flag=True, help="As the table in docs/samplers.md.")
def samplers_command(markdown: bool) -> None:
    """List the samplers with their sources."""
    if markdown:
        click.echo(markdown_table(), nl=False)
        return
    width = max(map(len, REGISTRY))
    for entry in REGISTRY.values():
        options = ", ".join(inspect.signature(entry.make).parameters)
        click.echo(f"{entry.name:<{width}}  {entry.source}\n{'':<{width}}  options: {options}")


@click.command()
@sampler_options
@click.option("--model", help="Compile for this network; without it for EDM preconditioning of any range.")
@click.option("--table", is_flag=False, flag_value="-", help="Every column as CSV, printed or written to a file.")
@click.option(
    "--plot",
    is_flag=False,
    flag_value="plan.png",
    type=OutFile(".png"),
    help="Draw sigma, step sizes and churn: plan.png or a file.",
)
def plan(model: str | None, table: str | None, plot: Path | None, **options: Any) -> None:
    """Print the plan of a sampler: one row an evaluation."""
    sampler = take_sampler(options)
    if not isinstance(sampler, Sampler):
        raise click.UsageError(f"{options['sampler']} is adaptive: it has no table")
    preconditioning = checkpoints.load(model).preconditioning if model else EDM()
    compiled = Plan(sampler, preconditioning)
    lines = [",".join(COLUMNS), *(",".join(repr(float(v)) for v in row) for row in compiled.table)]
    click.echo("\n".join(lines) if table == "-" else str(compiled))
    if plot is not None:
        plot_plan(compiled, plot)
    if table not in (None, "-"):
        with atomic_path(Path(table)) as temporary:
            temporary.write_text("\n".join(lines) + "\n")


def markdown_table() -> str:
    """Every sampler and its properties."""
    head = ["sampler", "order", "evaluations a step", "stochastic", "needs history", "zero SNR", "fused on", "source"]
    fused = ", ".join(sorted(backend.name for backend in BACKENDS if backend.name != "reference"))
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for e in REGISTRY.values():
        yes = {True: "yes", False: "no"}
        where = fused if e.fused else "none: adaptive, no table"
        cells = [f"`{e.name}`", e.order, e.evaluations, e.stochastic, yes[e.history], yes[e.zero_snr], where, e.source]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
