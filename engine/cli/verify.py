"""``edm-engine verify``: does this machine compute what it should?"""

import sys

import click
import torch

from .. import checkpoints
from ..verify.checks import Request, verify
from ..verify.golden import record as record_golden
from .types import DTYPES


@click.command("verify")
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option("--backend", default="all", show_default=True, help="One by name, or all that can run here.")
@click.option("--device", default="all", show_default=True, help="cpu, cuda, or all that are here.")
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(DTYPES),
    multiple=True,
    default=["float32", "bfloat16"],
    show_default=True,
    help="Of the network, in samples; may be given several times.",
)
@click.option("--record", is_flag=True, help="Add this machine's bits of the golden samples to the installed package.")
def verify_command(model: str, backend: str, device: str, dtypes: tuple[str, ...], record: bool) -> None:
    """Compare every backend with the reference, single samples with batches, and samples of the shipped network with
    golden ones. Exit status 0: all that is promised holds; 1: something differs, or a backend given by name cannot
    run."""
    denoiser = checkpoints.load(model)
    request = Request.check(model, denoiser, [getattr(torch, dtype) for dtype in dtypes], backend, device)
    if record:
        for where in request.devices:
            for line in record_golden(model, denoiser, request.dtypes, where):
                click.echo(f"recorded: {line}")
    failed = 0
    for found in verify(request):
        failed += found.passed is False
        mark = {True: "ok", False: "FAIL", None: "-"}[found.passed]
        click.echo(f"{mark:<5}{found.check:<22}{found.subject:<32}{found.outcome}")
    click.echo(f"{failed} failed" if failed else "all that is promised holds here")
    if failed:
        sys.exit(1)
