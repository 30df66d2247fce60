"""Modules of k-diffusion without the packages that neither samplers nor wrappers need."""

import importlib
import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest


def k_diffusion_module(name: str) -> ModuleType:
    """k_diffusion.<name> alone: the package imports wandb, kornia, clip and more.

    Of what the modules themselves import, these are for images, for a Brownian tree and for likelihoods: not used here.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("needs k-diffusion (make test)", allow_module_level=True)
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    unused = ["torchdiffeq", "torchsde", "torchvision", "torchvision.transforms"]
    if importlib.util.find_spec("scipy") is None:  # for LMS only, which is then skipped
        unused.append("scipy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        for missing in unused:
            patch.setitem(sys.modules, missing, MagicMock())
        return importlib.import_module(f"k_diffusion.{name}")
