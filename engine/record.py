"""Records of what made a file: strict JSON with the versions that made it. settings.json, a job's, is what it takes to
draw its images again, and what tells it from another."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .files import write_bytes

SETTINGS = "settings.json"


def write(path: Path, settings: Mapping[str, Any]) -> None:
    """Strict JSON, atomically: infinity is the string "inf", a tensor or a network the SHA-256 of its numbers, a
    function its name, the SHA-256 of its code and what it holds (not the values of global names that it reads)."""
    write_bytes(path, (json.dumps(_record(settings), indent=2, allow_nan=False) + "\n").encode())


def require_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError naming a setting that the folder's job does not have, or has otherwise."""
    path, now = folder / SETTINGS, _record(settings)
    before = _read(path)
    for name in [*now, *before]:
        was, given = before.get(name), now.get(name)
        if was != given:
            raise ValueError(f"{name} is {_short(given)}; allowed: {_short(was)}, as {path} has it")


def _record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the versions that draw."""
    versions = {"engine": version("edm-engine"), "torch": torch.__version__, "processor": platform.machine()}
    return {name: _plain(value) for name, value in (dict(settings) | versions).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); without it no job is resumed") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} is damaged (it holds no settings); without it no job is resumed")
    return read


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 70 else f"{text[:32]} ... {text[-32:]}"


def _plain(value: Any) -> Any:
    """As JSON, the same in every process."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list | range):
        return [_plain(each) for each in value]
    if isinstance(value, Tensor):
        return _sha256({"": value})
    if isinstance(value, nn.Module):
        return _sha256(value.state_dict())
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__} | held
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, FunctionType):
        return _function(value)
    return getattr(value, "__qualname__", None) or str(value)


def _function(function: FunctionType) -> dict[str, Any]:
    """By its code too: all lambdas of a place have one name."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    closure = [cell.cell_contents for cell in function.__closure__ or ()]  # the classifier of a gradient, say
    named = {"function": function.__qualname__, "code": _code(function.__code__)}
    return named | {"holds": [_plain(value) for value in [*defaults, *closure]]}


def _code(code: CodeType) -> str:
    """Of what is computed, not of the file and the lines where it stands."""
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return "sha256:" + hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name, tensor in tensors.items():
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{state.hexdigest()}"
