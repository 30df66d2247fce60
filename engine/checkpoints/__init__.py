"""Checkpoints: safetensors with the network's config in the metadata, and the networks that ship with the package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..adapters import folder
from ..denoiser import Denoiser
from ..files import atomic_path

_WEIGHTS = Path(__file__).parent.parent / "weights"
_FORMAT = "edm-engine 1"


def shipped() -> list[str]:
    """Names of the networks inside the package."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def load(name: str | Path, *, device: torch.device | str = "cpu") -> Denoiser:
    """A denoiser in float32, eval mode, from a shipped name ("fashion-mnist") or a safetensors file of `save`.

    Or from a folder of diffusers, a pipeline's or a UNet's (`engine.adapters.folder`). Raises ValueError if the name is
    unknown or the file is not such a checkpoint; nothing in a file is executed.
    """
    path = _WEIGHTS / f"{name}.safetensors" if str(name) in shipped() else Path(name)
    if folder.recognises(path):
        return folder.load(path).to(device)
    if not path.is_file():
        raise ValueError(f"{str(name)!r} is neither a file nor a shipped network; shipped: {', '.join(shipped())}")
    metadata = read_metadata(path)
    denoiser = Denoiser.from_config(json.loads(metadata["config"]))
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {key: file.get_tensor(key).to(torch.float32) for key in file.keys()}  # noqa: SIM118 (not a dict)
    expected = {key: tuple(value.shape) for key, value in denoiser.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    if given != expected:
        wrong = sorted(expected.items() ^ given.items())
        raise ValueError(f"{path}: tensors do not fit the config, first of {len(wrong)}: {wrong[0][0]} {wrong[0][1]}")
    denoiser.load_state_dict(state)
    denoiser.class_names = tuple(json.loads(metadata["classes"])) if "classes" in metadata else None
    return denoiser.to(device).eval()


def save(
    denoiser: Denoiser,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write weights in ``dtype`` and config (plus free ``notes``) as one safetensors file, atomically.

    Raises ValueError for a denoiser that was not built by `Denoiser.from_config`.
    """
    if denoiser.config is None:
        raise ValueError("denoiser has no config; only one built by Denoiser.from_config or load can be saved")
    metadata = {**(notes or {}), "format": _FORMAT, "config": json.dumps(denoiser.config)}
    if denoiser.class_names is not None:
        metadata["classes"] = json.dumps(denoiser.class_names)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in denoiser.state_dict().items()}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata)


def annotate(path: Path, notes: Mapping[str, str]) -> None:
    """Add notes (a measured figure, say) to a checkpoint's metadata; the weights stay as they are, bit for bit."""
    metadata = read_metadata(path) | dict(notes)
    tensors = load_file(path)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint: config, training command, licence, measured figures."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {metadata.get('format')!r}; allowed: {_FORMAT!r}")
    return metadata
