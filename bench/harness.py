"""What every benchmark shares: provenance, interleaved timing, the copy bandwidth, result files."""

import argparse
import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.files import write_bytes
from engine.provenance import provenance

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds a call: percentiles over rounds."""

    p20: float
    p50: float
    p80: float


def measure(calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float = 0.6) -> dict[str, Timing]:
    """Time several variants round by round, so that a noisy neighbour hits all of them; each gets ~``seconds``."""
    for call in calls.values():
        call()
    once = {name: max(_time(call, 1, device), 1e-7) for name, call in calls.items()}
    repeats = {name: max(1, int(seconds / 15 / t)) for name, t in once.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(15):
        for name, call in calls.items():
            rounds[name].append(_time(call, repeats[name], device))
    return {name: Timing(*np.percentile(times, [20, 50, 80])) for name, times in rounds.items()}


def _time(call: Callable[[], object], repeats: int, device: torch.device) -> float:
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


def copy_call(size: int, device: torch.device, threads: int | None = None) -> tuple[Callable[[], object], int]:
    """A plain copy of ``size`` bytes and the bytes it moves (read and written); threads: None for all of torch's."""
    source = torch.zeros(size // 8, dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    every = torch.get_num_threads()

    def on_fewer_threads() -> None:  # setting their number costs less than a microsecond
        torch.set_num_threads(threads or every)
        target.copy_(source)
        torch.set_num_threads(every)

    return on_fewer_threads if threads else lambda: target.copy_(source), 2 * source.numel() * 8


def launches(call: Callable[[], object], device: torch.device) -> int:
    """What a call asks of the device: CUDA kernels, copies and fills, as its profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def write(
    name: str,
    device: torch.device,
    rows: list[dict[str, Any]],
    notes: str,
    *,
    sections: Mapping[str, list[dict[str, Any]]] | None = None,
    prefix: str | None = None,
    label: str = "",
    show: bool = True,
) -> Path:
    """bench/results/<prefix>-<device>-<date>[-<label>].json and the same as a Markdown table; prints the table.

    prefix: None for the benchmark's name, "" for none. sections: further tables below, by their titles; empty ones are
    left out. Each file is replaced whole, so an interrupted benchmark may be written after each of its parts.
    """
    record: dict[str, Any] = {"benchmark": name, "provenance": provenance(device) | gpu_versions(device)}
    record |= {"notes": notes, "rows": rows}
    if sections:
        record["sections"] = {title: table for title, table in sections.items() if table}
    slug = "".join(c if c.isalnum() else "-" for c in record["provenance"]["device"].lower()).strip("-")
    parts = (name if prefix is None else prefix, slug, record["provenance"]["date"], label)
    path = RESULTS / ("-".join(part for part in parts if part) + ".json")
    RESULTS.mkdir(exist_ok=True)
    write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    table = markdown(record)
    write_bytes(path.with_suffix(".md"), table.encode())
    if show:
        print(table)
    return path


def gpu_versions(device: torch.device) -> dict[str, str]:
    """triton, CUDA and the driver, where the device is a GPU; {} otherwise."""
    if device.type != "cuda":
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
    asked = shutil.which("nvidia-smi") and subprocess.run(query, capture_output=True, text=True)
    driver = asked.stdout.strip() if asked and asked.returncode == 0 else "unknown"
    triton = version("triton") if importlib.util.find_spec("triton") else "absent"
    return {"triton": triton, "cuda": str(torch.version.cuda), "driver": driver}


def markdown(record: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in record["provenance"].items())
    lines = [f"# {record['benchmark']}", "", f"{facts}.", "", record["notes"], ""]
    lines += _table(record["rows"])
    for title, rows in record.get("sections", {}).items():
        lines += ["", f"## {title}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(rows[0]) if rows else ["nothing measured"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, help="torch's threads; its default if not given")
    return made
