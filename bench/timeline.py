"""What a profile says of a device: how busy it was, its gaps, which kernels took the time, launches a step.

Functions of spans alone; `bench.traces` reads these from nsys and from torch.profiler. All times are nanoseconds of one
clock, whichever it is.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["kernel", "copy", "operation"]


@dataclass(frozen=True)
class Span:
    """Something that ran from start to end [ns]. An "operation" is the CPU's, in place of a kernel."""

    name: str
    start: int
    end: int
    kind: Kind = "kernel"

    @property
    def ns(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Gaps:
    """Times in which nothing ran. count; total, longest and median in ns."""

    count: int
    total: int
    longest: int
    median: float


@dataclass(frozen=True)
class Total:
    """All spans of one name. calls; ns; share: of what all names took."""

    name: str
    calls: int
    ns: int
    share: float


@dataclass(frozen=True)
class Timeline:
    """Spans of one device, the CPU's ranges, and the nanoseconds during which they were looked at (the host's)."""

    source: str
    spans: tuple[Span, ...]
    window: int
    ranges: tuple[Span, ...] = ()


def merged(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """When at least one span ran: disjoint intervals (start, end), ascending. Those that touch are one."""
    busy: list[tuple[int, int]] = []
    for start, end in sorted((span.start, span.end) for span in spans):
        if busy and start <= busy[-1][1]:
            busy[-1] = (busy[-1][0], max(busy[-1][1], end))
        else:
            busy.append((start, end))
    return busy


def busy_ns(spans: Iterable[Span]) -> int:
    """Nanoseconds in which at least one span ran."""
    return sum(end - start for start, end in merged(spans))


def gaps(spans: Iterable[Span]) -> Gaps:
    """Between the first span and the last."""
    busy = merged(spans)
    found = [after[0] - before[1] for before, after in itertools.pairwise(busy)]
    return Gaps(len(found), sum(found), max(found, default=0), statistics.median(found) if found else 0.0)


def totals(spans: Iterable[Span]) -> list[Total]:
    """By name, those that took most first. Of spans inside each other, ranges say, each counts its whole time."""
    calls: dict[str, int] = {}
    taken: dict[str, int] = {}
    for span in spans:
        calls[span.name] = calls.get(span.name, 0) + 1
        taken[span.name] = taken.get(span.name, 0) + span.ns
    everything = sum(taken.values()) or 1
    found = [Total(name, calls[name], ns, ns / everything) for name, ns in taken.items()]
    return sorted(found, key=lambda total: (-total.ns, total.name))


def within(spans: Iterable[Span], window: Span) -> tuple[Span, ...]:
    """Those that lie in a window as a whole."""
    return tuple(span for span in spans if window.start <= span.start and span.end <= window.end)


def summary(timeline: Timeline, steps: int) -> dict[str, Any]:
    """One row. steps: how many network evaluations ran meanwhile, each with its fused step."""
    between, busy = gaps(timeline.spans), busy_ns(timeline.spans)
    copies = [span for span in timeline.spans if span.kind == "copy"]
    return {
        "source": timeline.source,
        "seconds": timeline.window / 1e9,
        "busy": share(busy, timeline.window),
        "busy from first to last": share(busy, busy + between.total),
        "gaps": between.count,
        "gaps ms": between.total / 1e6,
        "longest gap us": between.longest / 1e3,
        "median gap us": between.median / 1e3,
        "launches": len(timeline.spans),
        "of them copies and fills": len(copies),
        "launches per step": len(timeline.spans) / steps,
    }


def tables(timeline: Timeline, steps: int, longest: int = 15) -> dict[str, list[dict[str, Any]]]:
    """The kernels and the CPU's ranges that took most, by the titles of their tables."""
    ranges = "Ranges of the CPU (NVTX; a range in a range counts in both)"
    return {
        "Top kernels": _rows(timeline.spans, longest, lambda total: {"a step": total.calls / steps}),
        ranges: _rows(timeline.ranges, longest, lambda total: {}),
    }


def share(part: float, whole: float) -> str:
    """As a percentage with two decimals; "-" of nothing."""
    return f"{part / whole:.2%}" if whole else "-"


def _rows(spans: Sequence[Span], longest: int, more: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": total.name if len(total.name) <= 100 else total.name[:97] + "...",
            "calls": total.calls,
            **more(total),
            "ms": total.ns / 1e6,
            "us a call": total.ns / 1e3 / total.calls,
            "share": f"{total.share:.1%}",
        }
        for total in totals(spans)[:longest]
    ]
