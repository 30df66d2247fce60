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
        config, classes = (json.loads(metadata.get(name, "null")) for name in ("config", "classes"))
        if not isinstance(config, dict) or not isinstance(classes, list | None):
            raise ValueError("its metadata holds no config, or classes that are not a list")
        denoiser = build(config, tensors)
        denoiser.class_names = None if classes is None else tuple(map(str, classes))
    return denoiser
