"""Records that commands leave beside what they made: strict JSON, with the versions that made it."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_path


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` and the versions, atomically, as strict JSON: an infinite S_tmax is the string "inf"."""
    versions = {"engine": version("edm-engine"), "torch": torch.__version__, "processor": platform.machine()}
    plain = {name: _strict(value) for name, value in (record | versions).items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, default=str, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_strict(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
