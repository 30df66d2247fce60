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
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{processor()}, {_instructions()}",
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


def processor() -> str:
    """The CPU's name, and which generation it is: virtual machines hide that behind a name such as "AMD EPYC"."""
    facts = _facts()
    name = facts.get("model name", platform.processor() or "unknown processor")
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _instructions() -> str:
    """The widest set that decides speed."""
    flags = _facts().get("flags", "").split()
    return next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "no AVX2")


def _facts() -> dict[str, str]:
    """What Linux says of the first processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
