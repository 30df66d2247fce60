"""The published EDM network pickles: every module is stored as its class's source, its name and its state.

The source stays text: class names, constructor arguments and tensors are read from the records, and the network built
from them is ours.
"""

import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..denoiser import PRECONDITIONINGS, Denoiser
from .assemble import build, reading
from .known import module_names, tensor_names
from .restricted import Instance, Known, read_pickle, shown
from .storage import Budget, Storage, StoredTensor
from .torch_file import read_torch

_PUBLISHED = [name for name in PRECONDITIONINGS if name != "DiscretePrecond"]
_DEEPEST, _LONGEST_NAME = 16, 100


def load(path: Path) -> Denoiser:
    """The ``ema`` network of an EDM pickle, such as edm-cifar10-32x32-cond-vp.pkl.

    Raises ValueError for a name that no such pickle holds, for EDM2's networks, and for tensors that are missing.
    """
    with reading(path):
        saved = read(path.read_bytes())
        network = saved.get("ema") if isinstance(saved, dict) else None
        if not isinstance(network, Instance):
            raise ValueError("the pickle holds no network under 'ema'; allowed: a pickle of the EDM code")
        config, state = _config(network), _tensors(network)
        if config["class_name"] == "iDDPMPrecond":
            _check_levels(state.pop("u", None), config.get("M", 1000))
        return build(config, state)


def read(data: bytes) -> Any:
    """What the pickle holds: plain containers and numbers, `StoredTensor`s, and modules as `Instance`s."""
    budget = Budget(len(data))

    def storage(embedded: object) -> Storage:
        if not isinstance(embedded, bytes):
            raise ValueError("a tensor's bytes are not bytes")
        budget.spend(len(embedded), "its tensors")
        found = read_torch(embedded)
        if not isinstance(found, Storage):
            raise ValueError(f"a tensor's bytes hold a {type(found).__name__}, not a storage")
        return found

    makers = {
        "torch_utils.persistence._reconstruct_persistent_obj": _record,
        "torch.storage._load_from_bytes": storage,
    }
    names = tensor_names(len(data)) | module_names(len(data)) | {name: Known(name, m) for name, m in makers.items()}
    return read_pickle(io.BytesIO(data), names)


def _record(meta: object) -> Instance:
    """A persistent object: version 6 is that of all published EDM and EDM2 pickles."""
    meta = meta if isinstance(meta, dict) else {}
    if meta.get("type") != "class" or meta.get("version") != 6 or not isinstance(meta.get("class_name"), str):
        raise ValueError("it holds a persistent object that is not a class of version 6")
    instance = Instance(meta["class_name"])
    instance.set_state(meta.get("state"))
    return instance


def _config(network: Instance) -> dict[str, Any]:
    """Constructor arguments by name, as the class of the record was called with them."""
    name = network.class_name
    if name == "Precond":
        raise ValueError("its network is EDM2's Precond; its magnitude-preserving UNet is not one of ours")
    if name not in _PUBLISHED:
        raise ValueError(f"its network is a '{shown(name)}'; allowed: {', '.join(_PUBLISHED)}")
    positional, named = network.state.get("_init_args"), network.state.get("_init_kwargs")
    if not isinstance(positional, tuple | list) or not isinstance(named, dict):
        raise ValueError(f"its {name} does not say what it was constructed with (_init_args, _init_kwargs)")
    own = inspect.signature(PRECONDITIONINGS[name][0]).parameters
    order = ["img_resolution", "img_channels", "label_dim", "use_fp16", *own, "model_type"]
    if len(positional) > len(order) or not all(isinstance(key, str) for key in named):
        raise ValueError(f"its {name} was constructed with arguments that it does not have")
    return {"class_name": name} | dict(zip(order, positional, strict=False)) | named


def _tensors(network: Instance) -> dict[str, StoredTensor]:
    """Parameters and persistent buffers by their names in a state dict."""
    found: dict[str, StoredTensor] = {}
    waiting: list[tuple[tuple[str, ...], object]] = [((), network)]
    seen: set[int] = set()
    while waiting:
        path, module = waiting.pop()
        if not isinstance(module, Instance) or id(module) in seen or len(path) > _DEEPEST:
            raise ValueError(f"module {'.'.join(path)} is not a module, is there twice or lies too deep")
        seen.add(id(module))
        passing = module.state.get("_non_persistent_buffers_set") or ()
        for name, value in {**_entries(module, "_parameters"), **_entries(module, "_buffers")}.items():
            if value is not None and name not in passing:
                if not isinstance(value, StoredTensor):
                    raise ValueError(f"tensor {'.'.join([*path, name])} is a {type(value).__name__}")
                found[".".join([*path, name])] = value
        waiting += [((*path, name), child) for name, child in _entries(module, "_modules").items() if child is not None]
    return found


def _entries(module: Instance, kind: str) -> Mapping[str, object]:
    entries = module.state.get(kind)
    if not isinstance(entries, dict) or not all(isinstance(n, str) and len(n) <= _LONGEST_NAME for n in entries):
        raise ValueError(f"a {shown(module.class_name)} has no {kind} by name")
    return entries


def _check_levels(levels: StoredTensor | None, M: object) -> None:
    """The noise levels u_0 .. u_M are computed from the config; the file's own say that M is what it was."""
    if levels is None or not isinstance(M, int) or levels.size != (M + 1,):
        raise ValueError("its iDDPMPrecond has no buffer u of M + 1 noise levels")
