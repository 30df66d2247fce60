"""Calls timed round by round: on a CPU by its clock, on a GPU by replays of CUDA graphs.

A loop of Python around small kernels measures the host: a launch by Triton costs it 17 to 33 us, and kernels of a batch
of one take 3 to 10. So a GPU's call is captured, several times in one graph where it is short, and what the host needs
for the same calls is a figure of its own.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from engine.graphs import CaptureError
from engine.graphs.blame import require_capturable
from engine.graphs.capture import CudaCapture

Call = Callable[[], object]
GPU_NOTE = (
    "timed: by replays of a CUDA graph, or by the host where the call could not be captured. by the host: the same "
    "calls made by Python one after the other, so that a host slower than the device shows."
)
_ROUNDS = 15
_HOST_ROUNDS = 5
# Calls in one graph: as many as the host makes in 2 ms, so that the graph's own launch, some 6 us, does not count.
_CAPTURED_SECONDS = 2e-3
_MOST_CALLS = 50


@dataclass(frozen=True)
class Timing:
    """Seconds a call: percentiles over rounds.

    way: how it was timed, "graph" or "host"; of a GPU's call that no graph could hold, with the reason.
    host: a GPU's call as Python makes it, one after the other; the median.
    """

    p20: float
    p50: float
    p80: float
    way: str = "host"
    host: float | None = None


class _Work(NamedTuple):
    """What makes ``calls`` calls at once."""

    run: Call
    calls: int = 1


def measure(calls: Mapping[str, Call], device: torch.device, seconds: float = 0.6) -> dict[str, Timing]:
    """Time several variants round by round, so that a noisy neighbour hits all of them; each gets ~``seconds``."""
    for call in calls.values():
        call()
    by_host = {name: _Work(call) for name, call in calls.items()}
    if device.type != "cuda":
        return {name: Timing(*_percentiles(found)) for name, found in _rounds(by_host, device, seconds).items()}
    capture = CudaCapture(device)
    graphs = {name: _captured(call, capture, device) for name, call in calls.items()}
    works = {name: by_host[name] if isinstance(graph, str) else graph for name, graph in graphs.items()}
    times = _rounds(works, device, seconds)
    host = _rounds(by_host, device, seconds / 3, _HOST_ROUNDS)
    ways = {name: f"host: {graph}" if isinstance(graph, str) else "graph" for name, graph in graphs.items()}
    return {name: Timing(*_percentiles(times[name]), ways[name], median(host[name])) for name in calls}


def on_gpu(timing: Timing, unit: float, name: str) -> dict[str, object]:
    """Columns of a GPU's row: how it was timed, and the host's time in a unit of so many a second; none on a CPU."""
    return {} if timing.host is None else {"timed": timing.way, f"{name} by the host": timing.host * unit}


def _rounds(
    works: Mapping[str, _Work], device: torch.device, seconds: float, rounds: int = _ROUNDS
) -> dict[str, list[float]]:
    """Of each work, seconds a call, round by round."""
    once = {name: max(_time(work.run, 1, device), 1e-7) for name, work in works.items()}
    repeats = {name: max(1, int(seconds / rounds / t)) for name, t in once.items()}
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(_time(work.run, repeats[name], device) / work.calls)
    return found


def _percentiles(times: list[float]) -> tuple[float, float, float]:
    p20, p50, p80 = np.percentile(times, [20, 50, 80])
    return float(p20), float(p50), float(p80)


def _captured(call: Call, capture: CudaCapture, device: torch.device) -> _Work | str:
    """A graph of the call, made once already; or why there is none."""
    count = max(1, min(_MOST_CALLS, int(_CAPTURED_SECONDS / max(_time(call, 1, device), 1e-7))))

    def work() -> None:
        for _ in range(count):
            call()

    try:
        require_capturable(call, torch.nn.Module())
        capture.warm_up(call)
        return _Work(capture.capture(work).replay, count)
    except (CaptureError, torch.OutOfMemoryError) as error:
        said = str(error).strip().partition("\n")[0]
        return (said.partition(" in a CUDA graph: ")[2] or said).partition("; allowed")[0][:200]


def _time(call: Call, repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop) / 1e3 / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def copy_call(size: int, device: torch.device, threads: int | None = None) -> tuple[Call, int]:
    """A plain copy of ``size`` bytes and the bytes it moves (read and written); threads: None for all of torch's."""
    source = torch.zeros(size // 8, dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    every = torch.get_num_threads()

    def on_fewer_threads() -> None:  # setting their number costs less than a microsecond
        torch.set_num_threads(threads or every)
        target.copy_(source)
        torch.set_num_threads(every)

    return on_fewer_threads if threads else lambda: target.copy_(source), 2 * source.numel() * 8


def launches(call: Call, device: torch.device) -> int:
    """What a call asks of the device: CUDA kernels, copies and fills, as its profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
