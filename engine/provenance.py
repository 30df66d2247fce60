"""Where a measurement comes from: device, versions, commit and date, without which a figure means nothing. And which
code draws."""

import hashlib
import platform
import shutil
import subprocess
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import kernels
from .networks import native_ops

_ROOT = Path(__file__).parents[1]
# What computes; results that are being written do not make a commit another.
_CODE = ("engine", "kernels", "csrc", "CMakeLists.txt")


def provenance(device: torch.device) -> dict[str, Any]:
    """device, threads (torch's; they change a CPU's bits), torch, python, commit ("+changes" if code differs), date."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


@cache
def code() -> str:
    """A digest of the code that decides a network's bits: networks, what prepares them, kernels, the extension."""
    package = Path(__file__).parent
    files = [package / "prepare.py", *(package / "networks").glob("*.py"), *Path(kernels.__path__[0]).glob("*.py")]
    state = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.parent.name, file.name)):
        state.update(file.read_bytes())
    if native_ops.available():
        from engine import _native

        state.update(_native.sources.encode())
    return state.hexdigest()[:12]


def _commit() -> str:
    """Of the checkout this file is in; the version where it is in none, or where nothing reads it."""
    if not (_ROOT / ".git").exists() or shutil.which("git") is None:
        return f"version {version('edm-engine')}"
    commit = _git("rev-parse", "--short", "HEAD")
    return commit + ("+changes" if _git("status", "--porcelain", "-uno", "--", *_CODE) else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(part.split(":", 1) for part in reversed(lines) if ":" in part)
    flags = {key.strip(): value for key, value in fields.items()}.get("flags", "").split()
    widest = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), "no AVX2")
    name = {key.strip(): value.strip() for key, value in fields.items()}.get("model name", platform.processor())
    return f"{name} ({widest})"
