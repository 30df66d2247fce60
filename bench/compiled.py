"""Variants that torch.compile makes, each measured beside the engine in a process of its own.

A compilation that is cut short leaves its process with a capture or a lock that nobody ends. And what is compiled for
one situation is to be neither kept nor counted in another.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.variants import Situation, Variant

Rows = list[dict[str, Any]]
_BESIDE = 300.0  # seconds, beside those of compiling: starting, the engine's own preparation, rounds that last


def measured(situation: Situation, variant: Variant, options: argparse.Namespace, seconds: float) -> tuple[Rows, str]:
    """The variant's row, or none and the reason. options: of bench_sample; seconds: to compile in."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["--inside", "--variant", variant.name, "--results", folder, "--device", str(situation.device)]
        command += ["--network", f"{situation.network}:{situation.batch}", "--dtype", situation.half]
        command += ["--steps", str(situation.steps), "--compile-seconds", str(seconds)]
        for name in ("rounds", "seconds", "longest", "threads"):
            value = getattr(options, name)
            command += [] if value is None else [f"--{name}", str(value)]
        ended = run(command, seconds + _BESIDE + 4 * options.seconds)
        rows = [row for path in Path(folder).glob("*.json") for row in json.loads(path.read_text())["rows"]]
    return [row for row in rows if row["variant"] == variant.name], ended


def run(arguments: list[str], seconds: float) -> str:
    """bench_sample with these arguments, whose table nobody needs, and how it ended. It is killed after so long."""
    command = [sys.executable, "-m", "bench.bench_sample", *arguments]
    try:
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"its process had not ended after {seconds:.0f} s"
    return f"its process ended with {ended}"
