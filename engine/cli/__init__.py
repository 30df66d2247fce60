"""The command ``edm-engine``: one file a subcommand."""

import sys

import click
import torch

from ..graphs import CaptureError
from .check_precision import check_precision
from .convert import convert
from .evaluate import evaluate
from .info import info
from .invert import invert_command
from .loss_curve import loss_curve_command
from .report import report_command
from .sample import sample
from .samplers import plan, samplers_command
from .statistics import statistics_command
from .train import train, train_classifier
from .tune import tune_command
from .verify import verify_command
from .zero_snr import zero_snr_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edm-engine")
def cli() -> None:
    """Draw images from diffusion models in the EDM formulation."""


for command in (
    sample,
    invert_command,
    info,
    convert,
    samplers_command,
    plan,
    check_precision,
    evaluate,
    statistics_command,
    train,
    train_classifier,
    loss_curve_command,
    zero_snr_command,
    verify_command,
    report_command,
    tune_command,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; bad input ends in one line on stderr and exit status 2, not in a traceback."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _say(error.format_message())
        sys.exit(error.exit_code)
    except (ValueError, OSError, ArithmeticError, ImportError, CaptureError, torch.OutOfMemoryError) as error:
        _say(str(error))
        sys.exit(2)


def _say(message: str) -> None:
    """One line, whatever the message is made of."""
    print("edm-engine:", " ".join(message.split()), file=sys.stderr)
