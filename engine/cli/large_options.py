"""Options of large jobs: how images are filed, who draws them, how a job goes on."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..outputs import FORMATS

Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = [
    click.option(
        "--format",
        type=click.Choice(FORMATS),
        default="png",
        show_default=True,
        help="Files, or archives made of them at the end: an uncompressed zip, WebDataset shards, NumPy arrays.",
    ),
    click.option("--subdirs", is_flag=True, help="PNG files in a sub-folder for every thousand seeds."),
    click.option("--shard", type=int, help="Images in a tar file; by default 1000."),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with the job in --out: verify what is there, draw what is missing or torn. Without it the job "
        "starts anew.",
    ),
    click.option(
        "--ray", is_flag=True, help="Draw on a Ray cluster (extra ray); all its machines must see --out and --model."
    ),
    click.option("--workers", type=click.IntRange(min=1), help="With --ray: how many; else up to all of the cluster."),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),  # what our own operations take
        help="Of a process on the CPU; images are the same bits for the same number. Default: torch's own, 1 on Ray.",
    ),
]


def large_options(command: Command) -> Command:
    """The options above."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
