"""Records of what made a file: strict JSON with the versions that made it. settings.json, a job's, is what it takes to
draw its images again, and what tells it from another."""

import hashlib
import json
import math
import numbers
import platform
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePath
from types import CodeType, EllipsisType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .files import write_bytes

SETTINGS = "settings.json"
_JOB = {"engine", "seeds"}  # what every job's says, of any version

_OURS = __name__.partition(".")[0]
# Their classes are told by name: a job's versions say the rest.
_KNOWN = frozenset({"torch", "numpy", _OURS, *sys.stdlib_module_names})
# So are objects of these modules: what a hook's handle, a compiled module or a logger holds differs between processes.
_NAMED = ("torch._", "torch.utils.hooks", "logging")
_AS_TEXT = (numbers.Number, bytes, slice, PurePath, torch.dtype, np.dtype, EllipsisType)
_MACHINERY = frozenset(vars(nn.Module()))  # what every torch module has; its weights count, `training` does not
# Said of what is there anyway: of a `Denoiser`, and of a model of diffusers, whose config lists names in any order.
_NOTES = {_OURS: frozenset({"config", "class_names"}), "diffusers": frozenset({"_internal_dict"})}


def write(path: Path, settings: Mapping[str, Any]) -> None:
    """`encode`, atomically."""
    write_bytes(path, encode(settings))


def encode(settings: Mapping[str, Any]) -> bytes:
    """Strict JSON: infinity is the string "inf", a tensor or an array the SHA-256 of its numbers.

    A function is its name, the SHA-256 of its code and what it holds (not the values of global names that it reads), a
    class its name and, unless it is torch's or ours, the SHA-256 of its functions and constants. A network is its
    `weights` and `modules`, any other object its class and the SHA-256 of its attributes.
    """
    return (json.dumps(_record(settings), indent=2, allow_nan=False) + "\n").encode()


def require_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError naming a setting that the folder's job does not have, or has otherwise."""
    path, now = folder / SETTINGS, _record(settings)
    before = _read(path)
    for name, given, was in _differences(now, before):
        raise ValueError(f"{name} is {_short(given)}; allowed: {_short(was)}, as {path} has it")


def require_job(folder: Path, lists: list[str]) -> None:
    """Raises ValueError where what a new job would overwrite in the folder is somebody else's: settings.json, or what
    is called like a job's ``lists``, beside which a job's settings always are, if torn."""
    path = folder / SETTINGS
    foreign = lists
    if path.exists():
        try:
            ours = _read(path).keys() >= _JOB
        except ValueError:
            ours = bool(lists)
        foreign = [] if ours else [SETTINGS]
    if foreign:
        raise ValueError(f"folder is {folder}, whose {foreign[0]} no job has written; allowed: another, or without it")


def weights(network: nn.Module) -> str:
    """The SHA-256 of a network's parameters and buffers."""
    return _Description().weights(network)


def modules(network: nn.Module) -> str:
    """The SHA-256 of all else that makes a network: its modules' classes, plain attributes and hooks."""
    return _Description().modules(network)


def _record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the versions that draw."""
    versions = {"engine": version("edm-engine"), "torch": torch.__version__, "processor": platform.machine()}
    described: dict[str, Any] = _Description().of(dict(settings) | versions)
    return described


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); without it no job is resumed") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} is damaged (it holds no settings); without it no job is resumed")
    return read


def _differences(now: dict[str, Any], before: dict[str, Any], of: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names, with the names of what holds them in front, and both values."""
    for name in dict.fromkeys([*now, *before]):
        given, was = now.get(name), before.get(name)
        if isinstance(given, dict) and isinstance(was, dict) and given and was:
            yield from _differences(given, was, f"{of}{name}: ")
        elif given != was:
            yield of + name, given, was


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 70 else f"{text[:32]} ... {text[-32:]}"


class _Description:
    """Values as JSON, the same in every process. An object is described once, however often it is held."""

    def __init__(self) -> None:
        # By id(), with the objects themselves: a new one must not have the id of one that is gone.
        self._known: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if value is None or isinstance(value, bool | int | str):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = value, "itself"  # to what it holds, should that hold it in turn
            self._known[id(value)] = value, self._data(value)
        return self._known[id(value)][1]

    def _data(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {self._key(name): self.of(each) for name, each in value.items()}
        if isinstance(value, tuple | list | range | deque):
            return [self.of(each) for each in value]
        if isinstance(value, set | frozenset):  # whose order follows the process's hashes
            return sorted(map(self.of, value), key=json.dumps)
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return self.of(value.tolist())
        if isinstance(value, Tensor | np.ndarray):
            return _sha256(value)
        if isinstance(value, torch.device):
            return value.type  # each rank has a number of its own
        if isinstance(value, _AS_TEXT):
            return str(value)
        return self._code(value)

    def _code(self, value: Any) -> Any:
        """What computes, and any other object."""
        if isinstance(value, nn.Module):
            return {"weights": self.weights(value), "modules": self.modules(value)}
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return {"method": self.of(value.__func__), "of": self.of(value.__self__)}
        if isinstance(value, partial):
            return {"partial": self.of(value.func), "holds": self.of([value.args, value.keywords])}
        if is_dataclass(value):
            held = {field.name: self.of(getattr(value, field.name)) for field in fields(value)}
            return {"class": self.of(type(value))} | held
        attributes = object.__getstate__(value)
        if isinstance(value, ModuleType) or type(value).__module__.startswith(_NAMED) or attributes is None:
            names = [getattr(value, name, None) for name in ("__qualname__", "__name__")]
            return next((name for name in names if isinstance(name, str)), None) or self.of(type(value))
        return {"class": self.of(type(value)), "holds": self._digest(attributes)}

    def weights(self, network: nn.Module) -> str:
        """`record.weights`."""
        return self._digest(network.state_dict())

    def modules(self, network: nn.Module) -> str:
        """`record.modules`."""
        named = network.named_modules(remove_duplicate=False)
        return self._digest({name: [type(module), _attributes(module)] for name, module in named})

    def _function(self, function: FunctionType) -> dict[str, Any]:
        """By its code too: all lambdas of a place have one name."""
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        named = {"function": function.__qualname__, "code": self._compiled(function.__code__)}
        return named | {"holds": [self.of(value) for value in [*defaults, *_closure(function)]]}

    def _class(self, kind: type) -> Any:
        """By its name without the module's: a script is another module where it is imported."""
        own = {f"{base.__qualname__}.{name}": member for base in kind.__mro__ for name, member in _members(base)}
        return {"name": kind.__qualname__, "code": self._digest(own)} if own else kind.__qualname__

    def _compiled(self, code: CodeType) -> str:
        """Of what is computed, not of the file and the lines where it stands."""
        constants = [self._compiled(each) if isinstance(each, CodeType) else each for each in code.co_consts]
        return self._digest([code.co_code.hex(), code.co_names, constants])

    def _key(self, name: Any) -> str:
        return name if isinstance(name, str) else json.dumps(self.of(name))

    def _digest(self, value: Any) -> str:
        text = json.dumps(self.of(value), sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _home(kind: type) -> str:
    """The package that a class is of."""
    return kind.__module__.partition(".")[0]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module was given, beside its weights and the modules that it holds."""
    if type(module).__module__.startswith(_NAMED):
        return {}
    unseen = _MACHINERY.union(*(_NOTES.get(_home(base), ()) for base in type(module).__mro__))
    own = {name: value for name, value in vars(module).items() if name not in unseen}
    unsaved = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return own | unsaved | {"forward hooks": hooks}


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """The functions and plain constants in the body of a class, unless its version is known."""
    for name, member in vars(kind).items() if _home(kind) not in _KNOWN else ():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)  # of a property, a static one
        constant = isinstance(member, bool | int | float | str | tuple) and not name.startswith("__")
        if constant or isinstance(function, FunctionType):
            yield name, function


def _closure(function: FunctionType) -> Iterator[Any]:
    """What a function has taken from those around it: the classifier of a gradient, say."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that has no value yet
            yield None


def _sha256(array: Tensor | np.ndarray) -> str:
    state = hashlib.sha256(f"{array.dtype} {list(array.shape)}".encode())
    if isinstance(array, Tensor):
        state.update(array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    else:
        state.update(array.tobytes())
    return f"sha256:{state.hexdigest()}"
