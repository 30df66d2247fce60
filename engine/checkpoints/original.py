"""Checkpoints of the code bases our networks come from, as torch.save wrote them."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ..denoiser import Denoiser
from . import adm, score_sde
from .assemble import build, reading
from .storage import stored
from .torch_file import read_torch
from .translation import Original

# Each knows its own by the names of the tensors: a function from what was saved to an `Original`, or None.
_CODE_BASES = {"score_sde_pytorch": score_sde.find, "guided-diffusion": adm.find}


def load(path: Path, config: Mapping[str, Any]) -> Denoiser:
    """The network of a checkpoint whose tensors have the names of one of the code bases.

    Raises ValueError naming what ``config`` must say of it, or where the network is not one of ours.
    """
    with reading(path):
        found = _find(_read(path.read_bytes()))
        translated = found.translate(found.complete(config))
        return build(translated.config, translated.state, taps=translated.taps)


def _read(data: bytes) -> Any:
    """`torch.load(weights_only=True)`, once the restricted machine has seen that the file asks for no names beyond its
    own and no more memory than it has bytes: torch would give 4 GB to a file of 1 KB that asks."""
    read_torch(data)
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, LookupError, AttributeError, EOFError, OSError) as error:
        raise ValueError(f"torch.load refuses it: {error}") from None
    return tree_map_only(torch.Tensor, stored, saved)


def _find(saved: object) -> Original:
    for find in _CODE_BASES.values():
        found = find(saved)
        if found is not None:
            return found
    raise ValueError(f"its tensors do not have the names of {' or '.join(_CODE_BASES)}")
