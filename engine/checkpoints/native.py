"""The project's own checkpoints: safetensors that `Denoiser.save` wrote."""

import json
from pathlib import Path

from .. import tensor_file
from ..denoiser import Denoiser
from .assemble import build, reading


def load(path: Path) -> Denoiser:
    """A denoiser with the config and class names in the metadata."""
    tensors, metadata = tensor_file.read(path)
    with reading(path):
        denoiser = build(json.loads(metadata["config"]), tensors)
        denoiser.class_names = tuple(json.loads(metadata["classes"])) if "classes" in metadata else None
    return denoiser
