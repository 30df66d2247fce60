"""What a batch of samples carries from one network evaluation to the next, and where its noise comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import noise


class NoiseSource(Protocol):
    """Standard normals for the samples of one batch."""

    def latents(self) -> Tensor:
        """[B, C, *spatial], unit variance."""

    def eps(self, draw: int, samples: Sequence[int]) -> Tensor:
        """Churn noise ``draw`` of some samples of the batch, [len(samples), C, *spatial]."""


@dataclass(frozen=True)
class PhiloxNoise:
    """Counter-based noise: draw 0 of a seed is its latent (unless ``given``), draw i + 1 the noise of step i."""

    seeds: Sequence[int]
    shape: tuple[int, ...]
    device: torch.device
    given: Tensor | None = None

    def latents(self) -> Tensor:
        if self.given is not None:
            return self.given
        return noise.normal(self.seeds, 0, self.shape, device=self.device)

    def eps(self, draw: int, samples: Sequence[int]) -> Tensor:
        return noise.normal([self.seeds[b] for b in samples], draw + 1, self.shape, device=self.device)


@dataclass(frozen=True)
class TensorNoise:
    """Noise the caller brought: latents [B, C, *spatial] and churn noise [draws, B, C, *spatial]."""

    given: Tensor
    draws: Tensor | None

    def latents(self) -> Tensor:
        return self.given

    def eps(self, draw: int, samples: Sequence[int]) -> Tensor:
        assert self.draws is not None  # a stochastic plan without noise is refused before any work
        return self.draws[draw, list(samples)]


@dataclass
class State:
    """Buffers of one batch, written in place by ``advance``.

    x: the solver's state [B, C, *spatial] in the state dtype (x_hat of the paper: after churn).
    d: the slope kept by PREDICT for CORRECT, like x.
    net_in: the next network input, network dtype, channels_last when 4-D; c_noise: its noise label, float32 [B].
    table: a plan's table on the device, float64; base_row: int64 [B], sample b reads row base_row[b] + k.
    bad_row: int64 [B], the first row after which sample b was not finite, -1 while all is well.
    """

    x: Tensor
    d: Tensor
    net_in: Tensor
    c_noise: Tensor
    table: Tensor
    base_row: Tensor
    bad_row: Tensor
    noise: NoiseSource

    @classmethod
    def allocate(
        cls,
        shape: Sequence[int],
        table: Tensor,
        noise: NoiseSource,
        *,
        state_dtype: torch.dtype,
        net_dtype: torch.dtype,
    ) -> "State":
        """Buffers for a batch of shape [B, C, *spatial] on the table's device."""
        device, batch = table.device, shape[0]
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return cls(
            x=torch.empty(*shape, dtype=state_dtype, device=device),
            d=torch.empty(*shape, dtype=state_dtype, device=device),
            net_in=torch.empty(*shape, dtype=net_dtype, device=device, memory_format=layout),
            c_noise=torch.empty(batch, dtype=torch.float32, device=device),
            table=table,
            base_row=torch.zeros(batch, dtype=torch.int64, device=device),
            bad_row=torch.full([batch], -1, dtype=torch.int64, device=device),
            noise=noise,
        )
