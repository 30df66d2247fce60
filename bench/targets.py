"""What this project aims for on one H200-class GPU, and whether the figures measured reach it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """``what`` is at least, or at most, ``wanted``. find(rows, device_rows) -> the figure, None if not measured."""

    what: str
    sense: Literal["at least", "at most"]
    wanted: float
    unit: str
    find: Callable[[Rows, Rows], float | None]

    def judge(self, rows: Rows, device_rows: Rows) -> dict[str, Any]:
        """A row: the target beside what was measured, and "met", "not met" or "not measured"."""
        found = self.find(rows, device_rows)
        if found is None:
            verdict = "not measured"
        else:
            kept = found >= self.wanted if self.sense == "at least" else found <= self.wanted
            verdict = "met" if kept else "not met"
        target = f"{self.sense} {self.wanted:g} {self.unit}"
        return {"what": self.what, "target": target, "measured": "" if found is None else found, "verdict": verdict}


def _best(column: str, network: str, nfe: int, batch: int | None, pick: Callable[[Iterable[float]], float]) -> Any:
    """Of the engine's default in half precision; batch None for any."""

    def find(rows: Rows, _: Rows) -> float | None:
        found = [
            row[column]
            for row in rows
            if (row["network"], row["variant"], row["NFE"]) == (network, "engine", nfe)
            and row["dtype"] in ("bfloat16", "float16")
            and batch in (None, row["batch"])
            and isinstance(row[column], float)
        ]
        return pick(found) if found else None

    return find


def _of_device(column: str, batch: int | None) -> Any:
    """Of the CIFAR-10 network's row for a batch in the device's table; None for the largest with that figure."""

    def find(_: Rows, device_rows: Rows) -> float | None:
        mine = [row for row in device_rows if row["network"] == "cifar10" and isinstance(row[column], float)]
        found = {row["batch"]: row[column] for row in mine}
        return found.get(max(found) if batch is None and found else batch)

    return find


OUTSIDE, BUSY = "outside the network %", "GPU busy %"
CIFAR10 = ("cifar10", 35)
TARGETS = (
    Target("CIFAR-10 DDPM++, NFE 35, batch 512", "at least", 320, "images/s", _best("images/s", *CIFAR10, 512, max)),
    Target("CIFAR-10 DDPM++, NFE 35, batch 1", "at most", 18, "ms an image", _best("ms an image", *CIFAR10, 1, min)),
    Target("everything but the network's kernels, batch 512", "at most", 1, "%", _of_device(OUTSIDE, 512)),
    Target("everything but the network's kernels, batch 1", "at most", 5, "%", _of_device(OUTSIDE, 1)),
    Target("GPU busy over a job of 10,000 images, or of --job", "at least", 98, "%", _of_device(BUSY, None)),
    Target("ADM 64x64, NFE 79, any batch", "at least", 28, "images/s", _best("images/s", "imagenet64", 79, None, max)),
)


def judged(rows: Rows, device_rows: Rows) -> Rows:
    """Every target as a row."""
    return [target.judge(rows, device_rows) for target in TARGETS]
