"""The project's own file: tensors as safetensors, with the network's config and free notes in the metadata."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import atomic_path

_FORMAT = "edm-engine 1"


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file, atomically. ``metadata`` holds the config under "config", as JSON. OSError names the file."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, {**metadata, "format": _FORMAT})
        except SafetensorError as error:  # of Rust's own kind
            raise OSError(f"{path} could not be written: {error}") from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `write` wrote; ValueError for any other."""
    metadata = read_metadata(path)
    return load_file(path), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a checkpoint: config, training command, licence, measured figures."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {metadata.get('format')!r}; allowed: {_FORMAT!r}")
    return metadata


def annotate(path: Path, notes: Mapping[str, str]) -> None:
    """Add notes (a measured figure, say) to a checkpoint's metadata; the weights stay as they are, bit for bit."""
    tensors, metadata = read(path)
    write(path, tensors, metadata | dict(notes))
