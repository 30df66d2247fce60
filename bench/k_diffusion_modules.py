"""Modules of k-diffusion without the packages that neither samplers nor wrappers need."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import MagicMock


def k_diffusion_module(name: str) -> ModuleType:
    """k_diffusion.<name> alone: the package imports wandb, kornia, clip and more. Raises ImportError without it.

    Of what the modules themselves import, these are for images, for a Brownian tree and for likelihoods: not used here.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ImportError("k-diffusion is not installed")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or ())
    unused = ["torchdiffeq", "torchsde", "torchvision", "torchvision.transforms"]
    if importlib.util.find_spec("scipy") is None:  # for LMS only, which then does not run
        unused.append("scipy")
    with _standing_in({"k_diffusion": package} | {missing: MagicMock() for missing in unused}):
        return importlib.import_module(f"k_diffusion.{name}")


@contextmanager
def _standing_in(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Modules that are found instead of those of their names. What else is imported meanwhile stays."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
