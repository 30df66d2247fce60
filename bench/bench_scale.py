"""Large jobs: images a second and memory of `edm-engine sample` by the number of images, which should change neither.

    python -m bench.bench_scale [--images 64 640 6400] [--format png zip tar npz]

Every job is a process of its own. Images a second are of drawing and writing, as the command says them; seconds are of
the whole process, with its start; memory is the most that the process held at once (its maximum resident set).
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import parser, write


def run(images: int, format: str, folder: str, options: Any) -> tuple[float, float, float]:
    """Images a second, seconds and MiB of one job."""
    command = [sys.executable, "-m", "engine", "sample", "--model", "fashion-mnist", "--seeds", f"0-{images - 1}"]
    command += [
        "--class",
        "0-9",
        "--dtype",
        options.dtype,
        "--steps",
        str(options.steps),
        "--batch",
        str(options.batch),
    ]
    command += ["--device", options.device, "--format", format, "--out", folder]
    command += ["--subdirs"] * (format == "png") + ["--threads", str(torch.get_num_threads())]
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    rate = float(said.split(" images/s")[0].split()[-1])
    return rate, time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--images", nargs="+", type=int, default=[64, 640, 6400])
    arguments.add_argument("--format", nargs="+", default=["png"])
    arguments.add_argument("--dtype", default="bfloat16")
    arguments.add_argument("--steps", type=int, default=5)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    jobs = [(format, images) for format in options.format for images in options.images]
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {job: [] for job in jobs}
    for _ in range(options.rounds):  # interleaved, so that a noisy neighbour hits all of them
        for format, images in jobs:
            with tempfile.TemporaryDirectory() as folder:
                found[format, images].append(run(images, format, str(Path(folder) / "out"), options))
    rows = []
    for (format, images), results in found.items():
        rate, seconds, memory = np.median(results, axis=0)
        rows.append({"format": format, "images": images, "images/s": rate, "seconds": seconds, "MiB": int(memory)})
    notes = (
        f"fashion-mnist, {options.dtype}, {options.steps} steps, {2 * options.steps - 1} evaluations an image, "
        f"batches of {options.batch}; medians of {options.rounds} interleaved rounds, each job a process of its own."
    )
    write("scale", torch.device(options.device), rows, notes, options.results)


if __name__ == "__main__":
    main()
