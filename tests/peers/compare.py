"""What the comparisons share: one denoiser, one noise, our images, and a peer that counts in float64."""

import contextlib
import math
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import engine
from engine.preconditioning import Direct
from tests.helpers import wavy

STEPS = 7
SHAPE = (3, 8, 6)
RANGE = {"sigma_min": 0.05, "sigma_max": 20.0}
CHURN = {"S_churn": 2.0, "S_tmin": 0.1, "S_tmax": 15.0, "S_noise": 1.003}  # the first and the last level have none
EXACT = 1e-10  # of the largest value: everything in float64, so what is left is the order of operations
FLOAT32 = 2.0**-24  # what one rounding to float32 changes, relatively

GENERATOR = torch.Generator().manual_seed(2)
LATENTS = torch.randn(3, *SHAPE, generator=GENERATOR, dtype=torch.float64)
NOISE = torch.randn(2 * STEPS, 3, *SHAPE, generator=GENERATOR, dtype=torch.float64)

# Elementwise, not linear in x, different at every sigma.
DENOISER = wavy(Direct(), SHAPE).double()


def D(x: Tensor, sigma: Tensor | float) -> Tensor:
    """As the engine calls it: in the dtype of x, with sigma rounded to float32. (Some peers hand over float32.)"""
    sigma = torch.as_tensor(sigma).to(torch.float32)
    with torch.no_grad():
        return DENOISER.model(x.double(), sigma.expand(len(x)))


def drawn(sampler: engine.Sampler, denoiser: engine.Denoiser = DENOISER) -> Tensor:
    plan = engine.Plan(sampler, denoiser.preconditioning)
    return engine.sample(
        denoiser,
        latents=LATENTS,
        noise=NOISE[: plan.draws],
        sampler=sampler,
        output_dtype=torch.float64,
        backend="reference",
    )


def assert_agree(got: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    assert got.dtype == expected.dtype == torch.float64
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    assert math.isfinite(difference)
    assert difference <= tolerance


class _Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self.module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def float64(*modules: ModuleType) -> Iterator[None]:
    """Peers round betas, levels or the state to float32, by name or by default. In here these modules do not.

    So a difference that goes away in here was rounding, and nothing else.
    """
    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name in ("torch", "np"):
                if hasattr(module, name):
                    patch.setattr(module, name, _Wide(getattr(module, name)))
        try:
            torch.set_default_dtype(torch.float64)
            yield
        finally:
            torch.set_default_dtype(default)
