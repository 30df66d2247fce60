"""Modules of k-diffusion, or the reason why tests of it are skipped."""

import importlib.util
from types import ModuleType

import pytest

import bench.k_diffusion_modules


def k_diffusion_module(name: str) -> ModuleType:
    if importlib.util.find_spec("k_diffusion") is None:
        pytest.skip("needs k-diffusion (make test)", allow_module_level=True)
    return bench.k_diffusion_modules.k_diffusion_module(name)
