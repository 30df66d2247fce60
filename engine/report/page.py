"""The page."""

from collections.abc import Mapping
from pathlib import Path

from .measurements import Measurements


def write_page(out: Path, measured: Mapping[str, Measurements]) -> Path:
    return out / "report.html"
