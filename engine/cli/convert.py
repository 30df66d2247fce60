"""``edm-engine convert``: any checkpoint to the project's own format."""

from pathlib import Path
from typing import Any

import click
import torch

from .. import checkpoints
from .types import DTYPES, JsonObject, OutFile


@click.command()
@click.argument("source")
@click.argument("target", type=OutFile())
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the stored weights.")
@click.option("--config", type=JsonObject(), help="What SOURCE does not say of its network, as a JSON object.")
def convert(source: str, target: Path, dtype: str, config: dict[str, Any] | None) -> None:
    """Read the checkpoint SOURCE and write it to TARGET as safetensors with the config inside.

    SOURCE is an EDM pickle, a checkpoint of score_sde_pytorch or guided-diffusion, or one of this format. Nothing in it
    is executed. A folder of diffusers stays what it is: its network is none of ours.
    """
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise click.UsageError(f"TARGET is {target}, the source itself; allowed: another file")
    denoiser = checkpoints.load(source, config=config)
    denoiser.save(target, dtype=getattr(torch, dtype), notes={"converted_from": Path(source).name})
    count = sum(p.numel() for p in denoiser.parameters())
    click.echo(f"{count:,} parameters in {dtype}, written to {target}")
