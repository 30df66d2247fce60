"""Where the time of sampling goes on the device: busy share, gaps, top kernels, launches per step.

    python -m bench.profile_sample [--device cuda] [--network cifar10] [--batch 512] [--batches 4]

With nsys in PATH and a GPU, this runs itself under ``nsys profile -t cuda,nvtx`` and reads the sqlite export; otherwise
the same tables come from torch.profiler. On a CPU its operations stand in for kernels, and what is no operation of
torch (Python, the fused step in C++) shows as gaps.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

import engine
from bench.bench_sample import STEPS, say
from bench.bench_unet import load
from bench.harness import parser, write
from bench.timeline import Timeline, summary, tables
from bench.traces import MEASURED, from_nsys, from_torch

# Sampling of the CPU would need permissions, and nobody reads it.
NSYS = ["nsys", "profile", "-t", "cuda,nvtx", "--cuda-graph-trace=node", "--sample=none", "--cpuctxsw=none"]
NSYS += ["--export=sqlite", "--force-overwrite=true"]


def work(options: argparse.Namespace) -> Callable[[], None]:
    """What draws --batches batches, after it has drawn two: an engine captures with its second."""
    made = engine.Engine(
        load(options.network),
        sampler=engine.samplers.edm(steps=options.steps),
        dtype=getattr(torch, options.dtype),
        device=options.device,
        batch_size=options.batch,
        graph=options.graph,
    )
    labels = 1 if made.denoiser.label_dim else None

    def draw(batches: int) -> None:
        for _ in made.stream_uint8(seeds=range(batches * options.batch), class_labels=labels):
            pass

    draw(2)
    return lambda: draw(options.batches)


def by_nsys(given: Sequence[str]) -> Timeline:
    """This command again under nsys. Raises RuntimeError with what nsys says where it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "profile"
        command = [*NSYS, f"--output={report}", sys.executable, "-m", "bench.profile_sample", *given, "--inside"]
        ran = subprocess.run(command, capture_output=True, text=True)
        exported = report.with_suffix(".sqlite")
        if ran.returncode or not exported.exists():
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise RuntimeError(f"nsys ended with {ran.returncode}: {said[-1] if said else 'without a word'}")
        return from_nsys(exported)


def profiled(options: argparse.Namespace, given: Sequence[str]) -> tuple[Timeline, str]:
    """The timeline, and a sentence on nsys where it was not used."""
    device = torch.device(options.device)
    if device.type != "cuda":
        return from_torch(work(options), device), "nsys is not used without a GPU."
    if shutil.which("nsys") is None:
        return from_torch(work(options), device), "nsys is not installed."
    try:
        return by_nsys(given), ""
    except (RuntimeError, ValueError) as error:
        say(str(error))
        return from_torch(work(options), device), f"{error}."


def arguments(given: Sequence[str]) -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--network", default="cifar10")
    made.add_argument("--batch", type=int, default=512)
    made.add_argument("--batches", type=int, default=4)
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--steps", type=int, help="of Heun; 40 for imagenet64 and 18 for others if not given")
    made.add_argument("--graph", default="auto", help="auto, loop, step or off")
    made.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # of nsys: draw, and measure nothing
    options = made.parse_args(given)
    options.steps = options.steps or STEPS.get(options.network, 18)
    return options


def main(given: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.inside:
        draw = work(options)
        with torch.cuda.nvtx.range(MEASURED) if options.device != "cpu" else nullcontext():
            draw()
        return
    timeline, remark = profiled(options, given)
    nfe = 2 * options.steps - 1
    steps = options.batches * nfe
    first = {"network": options.network, "dtype": options.dtype, "batch": options.batch, "batches": options.batches}
    # The profiler's own cost is in the time; bench_sample says how fast it is without.
    found = first | {"NFE": nfe, "graph": options.graph} | summary(timeline, steps)
    notes = (
        f"{options.batches} batches by one call of Engine.stream_uint8, after two that warmed up. busy: the time in "
        "which at least one kernel or copy ran, of the call's. A step: one evaluation of the network and its fused "
        f"step. The profiler's own cost is included. {remark}"
    )
    write("profile", torch.device(options.device), [found], notes, options.results, sections=tables(timeline, steps))


if __name__ == "__main__":
    main()
