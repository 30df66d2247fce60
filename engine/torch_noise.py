"""The random streams of the published EDM and EDM2 code: one torch.Generator a seed, drawing in their order.

A seed's numbers depend on the kind of device (a CPU's generator and a CUDA device's differ), unlike Philox's. The
generators read a seed modulo 2**32, as published, so a job's seeds must be distinct modulo 2**32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import Plan

ORDERS = ("torch", "edm2")
_SEEDS = 2**32  # that the generators tell apart


@dataclass(frozen=True)
class TorchStream:
    """What each seed draws, one after the other: float32 latents; a label, if the network is conditional, even when a
    class is given; then the churn noises of ``steps``.

    count: of noises a plan may ask for. dtype: of the churn noise.
    """

    label_dim: int
    steps: tuple[int, ...]
    count: int
    dtype: torch.dtype

    @classmethod
    def of(cls, order: str, plan: Plan, label_dim: int) -> "TorchStream":
        """torch: EDM's generate.py, float64 noise once a step, used or not. edm2: float32, only where it is used."""
        if order == "torch":
            return cls(label_dim, tuple(range(plan.draws)), plan.draws, torch.float64)
        used = sorted({row.draw for row in plan.rows if row.std != 0})
        return cls(label_dim, tuple(used), plan.draws, torch.float32)

    def begin(
        self, seed: int, shape: tuple[int, ...], device: torch.device
    ) -> tuple[torch.Generator, Tensor, Tensor | None]:
        """(generator, latents [C, *spatial], label [])."""
        generator = torch.Generator(device).manual_seed(seed % _SEEDS)
        latents = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
        label = torch.randint(self.label_dim, [], generator=generator, device=device) if self.label_dim else None
        return generator, latents, label

    def labels(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> list[int]:
        """The class that each seed draws for itself."""
        drawn = [self.begin(seed, shape, device)[2] for seed in seeds]
        return [0 if label is None else int(label) for label in drawn]

    def draw(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """latents [N, C, *spatial] and eps [count, N, C, *spatial]; noises that are not drawn are zeros."""
        latents = torch.empty(len(seeds), *shape, dtype=torch.float32, device=device)
        eps = torch.zeros(self.count, len(seeds), *shape, dtype=self.dtype, device=device)
        for b, seed in enumerate(seeds):
            generator, latents[b], _ = self.begin(seed, shape, device)
            for step in self.steps:
                eps[step, b] = torch.randn(shape, generator=generator, dtype=self.dtype, device=device)
        return latents, eps


def require_distinct(order: str, seeds: Sequence[int]) -> None:
    """Raises ValueError for two seeds that an order draws the same image from; one seed is one image."""
    seen = dict[int, int]()
    for seed in seeds:
        other = seen.setdefault(seed % _SEEDS, seed)
        if other != seed:
            given = f"noise is {order!r} and seeds contains {other} and {seed}, equal modulo 2**32"
            raise ValueError(f"{given}; allowed: seeds distinct modulo 2**32")
