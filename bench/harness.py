"""What every benchmark shares: arguments, result files with their provenance, the table that an interruption leaves."""

import argparse
import importlib.util
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from engine.files import write_bytes
from engine.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def write(
    name: str,
    device: torch.device,
    rows: list[dict[str, Any]],
    notes: str,
    folder: Path,
    *,
    sections: Mapping[str, list[dict[str, Any]]] | None = None,
    prefix: str | None = None,
    label: str = "",
    show: bool = True,
) -> None:
    """<folder>/<prefix>-<device>-<date>[-<label>].json and the same as a Markdown table; prints the table.

    prefix: None for the benchmark's name, "" for none. sections: further tables below, by their titles; empty ones are
    left out. Each file is replaced whole, so a benchmark may be written after each of its parts; before the first of
    them there is nothing to write, and an earlier run's files stay.
    """
    if not rows:
        return
    record: dict[str, Any] = {"benchmark": name, "provenance": provenance(device) | gpu_versions(device)}
    record |= {"notes": notes, "rows": rows}
    if sections:
        record["sections"] = {title: table for title, table in sections.items() if table}
    slug = "".join(c if c.isalnum() else "-" for c in record["provenance"]["device"].lower()).strip("-")
    parts = (name if prefix is None else prefix, slug, record["provenance"]["date"], label)
    path = folder / ("-".join(part for part in parts if part) + ".json")
    write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    table = markdown(record)
    write_bytes(path.with_suffix(".md"), table.encode())
    if show:
        print(table, flush=True)


@contextmanager
def shown_in_the_end(write: Callable[[], object]) -> Iterator[None]:
    """write() when the work inside has ended, has failed or is told to stop (SIGINT, SIGTERM). In the main thread.

    Told again, it goes on writing: `timeout` sends its signal to the process and to its group, hence twice.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        try:
            write()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


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
    made.add_argument("--results", type=Path, default=RESULTS, help="a folder; bench/results if not given")
    return made
