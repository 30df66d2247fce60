"""Whole sampling, from seeds to uint8 images on the host: this engine beside the same network in others' loops.

    python -m bench.bench_sample [--device cuda] [--network cifar10 imagenet64:1,64] [--batch 1 8 64 512]
    python -m bench.bench_sample --device cpu --network fashion-mnist --dtype float32 bfloat16 --compile

Every variant draws the same batch with the same number of evaluations; all but "eager float32" with the same network in
the dtype asked for. What cannot run is listed with the reason. What torch.compile makes comes last (`bench.compiled`).
Writes <device>-<date>.json and .md anew after each network, batch and dtype, in the order asked for. On a GPU also this
project's targets (bench/targets.py), the share of all but the network's kernels, how busy the GPU is over a job, and
what it does at best.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bench import compiled, device_rows
from bench.bench_unet import load
from bench.harness import parser, shown_in_the_end, write
from bench.rounds import OutOfTime, Turn, at_most, interleaved
from bench.targets import judged
from bench.variants import CannotRun, Prepared, Situation, Variant, variants
from engine.measure import measure
from engine.prepare import find_device

STEPS = {"imagenet64": 40}  # as the EDM paper evaluates it; 18 for the others
BATCHES = (1, 8, 64, 512)
NOTES = (
    "From seeds (noise for others than the engine) to uint8 on the host, one call a batch; others' noise is of one "
    "torch.Generator. ms an image: medians of interleaved rounds with p20 and p80, in turn in one process, so that "
    "what else the machine does hits all alike (what torch.compile makes: beside the engine again, in a process of its "
    "own); times engine: the variant's time in units of the engine's in the same rounds. CPU ms: an image's, of all "
    "threads of the process, in which what else the machine does counts little. TFLOP/s: of the network's evaluations "
    "(engine.measure), over the whole time. MiB: what preparing the variant took of a GPU's memory, its caches and "
    "graphs included. diffusers draws by EDMEulerScheduler with as many evaluations, k-diffusion by sample_heun."
)


class Bench:
    """One run: what was measured so far, and the files that hold it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, find_device(options.device)
        self.started = time.perf_counter()
        self.rows: dict[Situation, list[dict[str, Any]]] = {}
        self.device_rows: list[dict[str, Any]] = []
        self.ceilings: list[dict[str, Any]] = []

    @property
    def left(self) -> float:
        """Seconds until what takes long is left out."""
        return self.options.minutes * 60 - (time.perf_counter() - self.started)

    def write(self, show: bool = False) -> None:
        gpu, rows = self.device.type == "cuda", [row for rows in self.rows.values() for row in rows]
        sections = {
            "Targets (of one H200-class GPU)": judged(rows, self.device_rows) if gpu else [],
            "The engine on the device": self.device_rows,
            "What the device does at best": self.ceilings,
        }
        notes = " ".join([NOTES, *self.options.note])
        write(
            "sample", self.device, rows, notes, self.options.results,
            sections=sections, prefix="", label=self.options.label, show=show,
        )  # fmt: skip

    def listed(self, situation: Situation, compiles: bool) -> list[Variant]:
        """Those asked for that torch.compile makes, or the others."""
        asked, found = self.options.variant, variants(situation, compiled=True)
        return [v for v in found if v.compiles == compiles and (not asked or v.name in asked or v.name == "engine")]

    def compare(self, situation: Situation, listed: list[Variant]) -> Prepared | None:
        """Variants of one situation in the same rounds, the engine first; returns the engine's where it ran."""
        flops = measure(situation.denoiser).flops
        prepared, taken, reasons = {}, {}, {}
        for variant in listed:
            say(f"{situation}: {variant.name}")
            before = free_bytes(self.device, tidy=True)
            try:
                prepared[variant.name] = self.prepare(variant)
                taken[variant.name] = (before - free_bytes(self.device)) / 2**20
            except Exception as error:  # whatever keeps one variant from running must not cost the others
                reasons[variant.name] = reason(error)
        calls: dict[str, Callable[[], object]] = {name: each.draw for name, each in prepared.items()}
        times, failed = interleaved(calls, self.options.rounds, self.options.seconds)
        reasons |= {name: reason(error) for name, error in failed.items()}
        self.rows.setdefault(situation, []).extend(
            row(situation, name, times.get(name), times.get("engine"), flops, taken.get(name), reasons.get(name, ""))
            for name in (variant.name for variant in listed)
        )
        self.write()
        return prepared["engine"] if "engine" in times else None

    def look_at_device(self, situation: Situation, prepared: Prepared, images: int) -> None:
        """The device's row. images: of the job, 0 for none."""
        rounds, seconds = self.options.rounds, 4 * self.options.seconds
        try:
            self.device_rows.append(device_rows.row(situation, prepared, rounds, seconds, images))
        except Exception as error:  # what has been timed stays, and so does what comes
            self.options.note.append(f"{situation}: the device's row is missing ({reason(error)}).")
        self.write()

    def compile(self, situation: Situation) -> None:
        """Each variant that torch.compile makes, in a process of its own."""
        for variant in self.listed(situation, compiles=True):
            say(f"{situation}: {variant.name}")
            free_bytes(self.device, tidy=True)
            limit = min(self.options.compile_seconds, self.left)
            found: list[dict[str, Any]] = []
            ended = f"not begun: the {self.options.minutes:g} minutes of this run had passed"
            if limit >= 1:
                found, ended = compiled.measured(situation, variant, self.options, limit)
            without = row(situation, variant.name, None, None, 0, None, ended)
            self.rows.setdefault(situation, []).extend(found or [without])
            self.write()

    def prepare(self, variant: Variant) -> Prepared:
        """Ready to be timed: tried out, and short enough. Raises whatever keeps it from running."""
        if not variant.compiles:
            return self.tried(variant.prepare())
        try:
            with at_most(self.options.compile_seconds):
                return self.tried(variant.prepare())
        except OutOfTime:
            raise CannotRun(f"not compiled in {self.options.compile_seconds:.0f} s") from None

    def tried(self, prepared: Prepared) -> Prepared:
        """After three calls: graphs are captured in the second. Raises `CannotRun` where the third took too long."""
        for _ in range(3):
            started = time.perf_counter()
            prepared.try_out()
            taken = (time.perf_counter() - started) / prepared.share
        if prepared.made is None and taken > self.options.longest:
            by, longest = f"{prepared.share:.0%} of it", self.options.longest
            raise CannotRun(f"a batch would take {taken:.0f} s, going by {by}; --longest is {longest:g}")
        return prepared


def row(
    situation: Situation,
    variant: str,
    turns: Sequence[Turn] | None,
    engine_turns: Sequence[Turn] | None,
    flops: int,
    taken: float | None,
    note: str,
) -> dict[str, Any]:
    """One variant's. turns: None if it did not run."""
    cells: dict[str, Any] = dict.fromkeys(
        ["rounds", "ms an image", "p20", "p80", "images/s", "times engine", "CPU ms", "TFLOP/s", "MiB"], ""
    )
    if turns is not None:
        times, cpu = zip(*turns, strict=True)
        p20, p50, p80 = (float(each) for each in np.percentile(times, [20, 50, 80]) / situation.batch)
        # Of the rounds that both had: those of a slow variant are the first ones.
        beside = [turn.seconds for turn in engine_turns or ()][: len(times)]
        ratio = float(np.median(times) / np.median(beside)) if beside else ""
        cells |= {"rounds": len(times), "ms an image": p50 * 1e3, "p20": p20 * 1e3, "p80": p80 * 1e3}
        cells |= {"images/s": 1 / p50, "times engine": ratio, "TFLOP/s": flops * situation.nfe / p50 / 1e12}
        cells |= {"CPU ms": float(np.median(cpu)) / situation.batch * 1e3}
        cells |= {"MiB": round(taken) if taken is not None and situation.device.type == "cuda" else ""}
    dtype = "float32" if variant == "eager float32" else situation.half
    start = {"network": situation.network, "dtype": dtype, "batch": situation.batch, "NFE": situation.nfe}
    return start | {"variant": variant} | cells | {"note": note}


def reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    text = str(error).strip().splitlines()
    first = text[0][:200] if text else ""
    return first if isinstance(error, CannotRun) else f"{type(error).__name__}: {first}"


def free_bytes(device: torch.device, tidy: bool = False) -> int:
    """Of a GPU's memory; 0 on a CPU. tidy: after all that is held for nothing has been let go."""
    if device.type != "cuda":
        return 0
    if tidy:
        gc.collect()
        torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0])
    networks = "fashion-mnist, cifar10, imagenet64; with batch sizes of its own as imagenet64:1,64"
    made.add_argument("--network", nargs="+", default=["cifar10", "imagenet64:1,64"], help=networks)
    made.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # of `compiled`: this process compiles
    made.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    made.add_argument("--dtype", nargs="+", default=["bfloat16"])
    made.add_argument("--steps", type=int, help="of Heun; 40 for imagenet64 and 18 for others if not given")
    made.add_argument("--variant", nargs="+", help="by name; all if not given. The engine is always measured")
    made.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default on a GPU")
    made.add_argument("--compile-seconds", type=float, default=900, help="at most, for each that is compiled")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--seconds", type=float, default=20.0, help="for each variant and situation, roughly")
    made.add_argument("--longest", type=float, default=120.0, help="seconds a batch, beyond which others are left out")
    made.add_argument("--minutes", type=float, default=1e9, help="after which nothing more is compiled")
    made.add_argument("--job", type=int, default=10_000, help="images of the job over which a GPU is to be busy")
    made.add_argument("--label", default="", help="appended to the file's name")
    made.add_argument("--note", action="append", default=[], help="a sentence for the result file")
    return made.parse_args(given)


def situations(options: argparse.Namespace, device: torch.device) -> list[Situation]:
    """In the order asked for; batches are those of --network name:1,8, else of --batch."""
    asked = [given.partition(":") for given in options.network]
    denoisers = {name: load(name) for name in dict.fromkeys(name for name, _, _ in asked)}
    found = [
        Situation(name, denoisers[name], batch, getattr(torch, dtype), options.steps or STEPS.get(name, 18), device)
        for name, _, own in asked
        for dtype in options.dtype
        for batch in (map(int, own.split(",")) if own else options.batch)
    ]
    return list(dict.fromkeys(found))


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    bench = Bench(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    asked, cuda = situations(options, bench.device), bench.device.type == "cuda"
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # "float32" is to mean that
    with shown_in_the_end(lambda: bench.write(show=True)):
        if options.inside:
            (situation,) = asked
            bench.compare(situation, [bench.listed(situation, False)[0], *bench.listed(situation, True)])
            return
        if cuda:
            bench.ceilings = device_rows.ceilings(bench.device)
        of_cifar10 = [situation.batch for situation in asked if situation.network == "cifar10"]
        for situation in asked:
            prepared = bench.compare(situation, bench.listed(situation, compiles=False))
            largest = situation.network == "cifar10" and situation.batch == max(of_cifar10)
            if cuda and prepared is not None:
                bench.look_at_device(situation, prepared, options.job if largest else 0)
            del prepared  # before the next situation's, which may need its memory
        # Compiling takes minutes, and time may run out.
        for situation in asked if (cuda if options.compile is None else options.compile) else []:
            bench.compile(situation)


if __name__ == "__main__":
    main()
