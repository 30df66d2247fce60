"""Checkpoints: the project's own, the networks that ship with the package, and published ones, read without trust."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters import folder
from ..denoiser import Denoiser
from ..prepare import find_device
from ..tensor_file import annotate, read_metadata
from . import edm_pickle, native, original, torch_file

__all__ = ["FORMATS", "Format", "annotate", "load", "read_metadata", "save", "shipped"]

_WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint. ``load(path, config)`` gets what the user says of a network whose file does not."""

    name: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, Mapping[str, Any]], Denoiser]


def _begins(*starts: tuple[int, bytes]) -> Callable[[Path], bool]:
    """Whether a file has certain bytes at certain places."""

    def recognises(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(64)
        return any(head.startswith(start, offset) for offset, start in starts)

    return recognises


def _complete(load: Callable[[Path], Denoiser]) -> Callable[[Path, Mapping[str, Any]], Denoiser]:
    """For files that hold their whole config."""

    def checked(path: Path, config: Mapping[str, Any]) -> Denoiser:
        if config:
            raise ValueError(f"config has {', '.join(config)}; allowed: nothing, {path} holds its own")
        return load(path)

    return checked


# The first that recognises a path loads it: a file of torch.save in the old format begins as any other pickle.
FORMATS = [
    Format("safetensors of edm-engine", _begins((8, b"{")), _complete(native.load)),
    Format("torch.save (score_sde, ADM)", _begins((0, torch_file.ZIP), (0, torch_file.LEGACY)), original.load),
    Format(
        "EDM pickle", _begins(*((0, bytes([0x80, protocol])) for protocol in range(2, 6))), _complete(edm_pickle.load)
    ),
    Format("folder of diffusers", folder.recognises, _complete(folder.load)),
]


def shipped() -> list[str]:
    """Names of the networks inside the package."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def load(name: str | Path, *, device: torch.device | str = "cpu", config: Mapping[str, Any] | None = None) -> Denoiser:
    """A denoiser in float32, eval mode, from a shipped name ("fashion-mnist") or a checkpoint of any of `FORMATS`.

    Or from a folder of diffusers, a pipeline's or a UNet's (`engine.adapters.folder`).

    config: what the file cannot say, in the words of `Denoiser.from_config`; only for the original score_sde and ADM
    checkpoints, whose error names what is needed. Nothing in a file is executed, and memory stays within a few times
    the file's size. Raises ValueError if the name is unknown, the file is not such a checkpoint,
    or the device is not there.
    """
    target = find_device(device)
    if not isinstance(config, Mapping | None):
        raise ValueError(f"config is {config!r}; allowed: a dict, or None")
    path = _WEIGHTS / f"{name}.safetensors" if str(name) in shipped() else Path(name)
    if not str(name) or not path.exists():
        raise ValueError(f"{str(name)!r} is neither a file nor a shipped network; shipped: {', '.join(shipped())}")
    for kind in FORMATS:
        if kind.recognises(path):
            return kind.load(path, config or {}).to(target)
    raise ValueError(f"{path} is none of: {', '.join(kind.name for kind in FORMATS)}")


def save(
    denoiser: Denoiser, path: str | Path, *, dtype: torch.dtype = torch.float32, notes: Mapping[str, str] | None = None
) -> None:
    """`Denoiser.save`. Raises ValueError for what is no denoiser, too."""
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"denoiser is a {type(denoiser).__name__}; allowed: an engine.Denoiser")
    denoiser.save(path, dtype=dtype, notes=notes)
