"""``edm-engine tune``: good churn by a budgeted search, and whether churn helps at all."""

from dataclasses import asdict
from pathlib import Path

import click
import torch

from .. import checkpoints
from ..engine import Engine
from ..metrics import Scorer
from ..provenance import provenance
from ..record import write as write_record
from ..samplers import Churn
from ..tuning import Round, tune_churn
from .types import DTYPES, OutFile


@click.command("tune")
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option("--budget", type=int, default=20_000, show_default=True, help="Images to draw in all.")
@click.option("--steps", type=click.IntRange(1), default=18, show_default=True, help="Of the sampler edm, with Heun.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the network.")
@click.option("--batch", type=click.IntRange(1), default=100, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "out", type=OutFile(), help="Also write what was found as JSON.")
def tune_command(model: str, budget: int, steps: int, dtype: str, batch: int, device: str, out: Path | None) -> None:
    """Search S_churn, S_tmin, S_tmax and S_noise by Frechet distance, all samplers on the same seeds, and compare the
    best with the deterministic sampler on fresh seeds."""
    settings = dict(click.get_current_context().params)
    engine = Engine(checkpoints.load(model), dtype=getattr(torch, dtype), batch_size=batch, device=device)
    scorer = Scorer(engine)
    tuned = tune_churn(scorer, steps, budget, _tell)
    click.echo(f"\non {tuned.images} fresh seeds each:")
    click.echo(
        f"{tuned.deterministic.distance:>9.3f}  deterministic\n{tuned.stochastic.distance:>9.3f}  {_typed(tuned.best)}"
    )
    click.echo(f"{tuned.verdict}: {tuned.by:+.3f} +- {tuned.half:.3f} (95%, paired over seeds)")
    if out is not None:
        where = {"settings": settings, "provenance": provenance(engine.device)}
        write_record(out, where | {"verdict": tuned.verdict} | asdict(tuned))


def _tell(found: Round) -> None:
    click.echo(f"\n{len(found.scores)} samplers, {found.images} images each; Frechet distance and 95% interval")
    for churn, score in found.scores:
        click.echo(f"{score.distance:>9.3f}  {score.low:.3f} to {score.high:.3f}  {_typed(churn)}")


def _typed(churn: Churn) -> str:
    """As options of `edm-engine sample`."""
    if churn.S_churn == 0:
        return "deterministic"
    values = {"churn": churn.S_churn, "tmin": churn.S_tmin, "tmax": churn.S_tmax, "noise": churn.S_noise}
    return " ".join(f"--S-{name} {value:g}" for name, value in values.items())
