"""Where timelines come from: nsys' sqlite export, and torch.profiler."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType

from bench.timeline import Kind, Span, Timeline, within

MEASURED = "bench:measured"  # the NVTX range around what is looked at
# Tables appear in an export only if something is in them; names are in StringIds.
_KERNELS = (
    "SELECT coalesce(s.value, '?'), k.start, k.end FROM CUPTI_ACTIVITY_KIND_KERNEL k "
    "LEFT JOIN StringIds s ON s.id = k.shortName"
)
_DEVICE: dict[str, tuple[str, Kind]] = {
    "CUPTI_ACTIVITY_KIND_KERNEL": (_KERNELS, "kernel"),
    "CUPTI_ACTIVITY_KIND_MEMCPY": ("SELECT copyKind, start, end FROM CUPTI_ACTIVITY_KIND_MEMCPY", "copy"),
    "CUPTI_ACTIVITY_KIND_MEMSET": ("SELECT 'Memset', start, end FROM CUPTI_ACTIVITY_KIND_MEMSET", "copy"),
    # Where graphs were not traced node by node: one span a graph, better than none.
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": (
        "SELECT 'whole CUDA graph', start, end FROM CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
        "kernel",
    ),
}
# Push and pop, start and end; marks have no end. A text is written out or, when registered, in StringIds.
_RANGES = (
    "SELECT coalesce(n.text, s.value, '?'), n.start, n.end FROM NVTX_EVENTS n LEFT JOIN StringIds s ON s.id = n.textId "
    "WHERE n.end IS NOT NULL AND n.eventType IN (59, 60)"
)
_COPIES = {1: "Memcpy HtoD", 2: "Memcpy DtoH", 8: "Memcpy DtoD"}


def from_nsys(path: Path) -> Timeline:
    """Of ``nsys profile -t cuda,nvtx --cuda-graph-trace=node --export=sqlite``: what lies in the range `MEASURED`.

    Raises ValueError where that range or any work of a device is missing.
    """
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        spans = [
            Span(_COPIES.get(name, f"Memcpy of kind {name}") if isinstance(name, int) else name, start, end, kind)
            for table, (query, kind) in _DEVICE.items()
            if table in there
            for name, start, end in database.execute(query)
        ]
        found = database.execute(_RANGES) if "NVTX_EVENTS" in there else ()
        ranges = [Span(name, start, end) for name, start, end in found]
    database.close()
    window = next((span for span in ranges if span.name == MEASURED), None)
    if window is None:
        raise ValueError(f"{path.name} has no NVTX range {MEASURED}; allowed: exports of bench.profile_sample")
    looked_at = within(spans, window)
    if not looked_at:
        raise ValueError(f"{path.name} has no kernels in its range {MEASURED}")
    others = tuple(span for span in within(ranges, window) if span is not window)
    return Timeline("nsys", looked_at, window.ns, others)


def from_torch(work: Callable[[], object], device: torch.device) -> Timeline:
    """Do the work under torch.profiler. On a CPU its outermost operations stand in for kernels."""
    cuda = device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind], acc_events=True) as profile:
        started = time.perf_counter_ns()
        work()
        if cuda:
            torch.cuda.synchronize(device)
        window = time.perf_counter_ns() - started
    spans = []
    for event in profile.events():
        mine = event.device_type == DeviceType.CUDA if cuda else event.cpu_parent is None
        # Ranges named by record_function appear among a GPU's kernels too.
        if mine and not (cuda and getattr(event, "is_user_annotation", False)):
            copied = event.name.startswith(("Memcpy", "Memset"))
            start, end = (round(us * 1e3) for us in (event.time_range.start, event.time_range.end))
            spans.append(Span(event.name, start, end, "operation" if not cuda else "copy" if copied else "kernel"))
    source = "torch.profiler, CUDA" if cuda else "torch.profiler, the CPU's operations in place of kernels"
    return Timeline(source, tuple(spans), window)
