"""Checkpoints of the code bases our networks come from, as torch.save wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..denoiser import Denoiser
from . import adm, score_sde
from .assemble import build, reading
from .torch_file import read_torch
from .translation import Original

# Each knows its own by the names of the tensors: a function from what was saved to an `Original`, or None.
_CODE_BASES = {"score_sde_pytorch": score_sde.find, "guided-diffusion": adm.find}


def load(path: Path, config: Mapping[str, Any]) -> Denoiser:
    """The network of a checkpoint whose tensors have the names of one of the code bases.

    Raises ValueError naming what ``config`` must say of it, or where the network is not one of ours.
    """
    with reading(path):
        found = _find(read_torch(path.read_bytes()))
        translated = found.translate(found.complete(config))
        return build(translated.config, translated.state, taps=translated.taps)


def _find(saved: object) -> Original:
    for find in _CODE_BASES.values():
        found = find(saved)
        if found is not None:
            return found
    raise ValueError(f"its tensors do not have the names of {' or '.join(_CODE_BASES)}")
