"""What a batch of samples carries from one network evaluation to the next, and where its noise comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import noise
from .plan import COLUMNS


@dataclass(frozen=True)
class Noise:
    """Standard normals for one batch: from the samples' seeds, from buffers the caller brought, or some of each.

    seeds: int64 [B] on the device (the bit pattern of a 64-bit seed), or None. Draw 0 of a seed is its latent, draw
    i + 1 the noise of step i. latents [B, C, *spatial] replaces draw 0; eps [draws, B, C, *spatial] the others. Buffers
    are contiguous, float32 or float64.
    """

    shape: tuple[int, ...]
    seeds: Tensor | None = None
    latents: Tensor | None = None
    eps: Tensor | None = None

    def begin(self, samples: Sequence[int]) -> Tensor:
        """The latents of some samples of the batch, [len(samples), C, *spatial]."""
        return self.latents[list(samples)] if self.latents is not None else self._draw(0, samples)

    def step(self, draw: int, samples: Sequence[int]) -> Tensor:
        """Churn noise ``draw`` of some samples of the batch, [len(samples), C, *spatial]."""
        return self.eps[draw, list(samples)] if self.eps is not None else self._draw(draw + 1, samples)

    def _draw(self, draw: int, samples: Sequence[int]) -> Tensor:
        assert self.seeds is not None  # neither seeds nor a buffer: refused before any work
        seeds = [seed % 2**64 for seed in self.seeds[list(samples)].tolist()]
        return noise.normal(seeds, draw, self.shape, backend="reference", device=self.seeds.device)


class Level(NamedTuple):
    """Where an evaluation stands: each sample's noise level, preconditioning and guidance there, float32 [B]."""

    sigma: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    guide_F: Tensor
    guide_G: Tensor


_LEVEL = {name: COLUMNS.index(name) for name in Level._fields}


@dataclass
class State:
    """Buffers of one batch, written in place by ``advance``.

    x: the solver's state [B, C, *spatial], contiguous, float64 or float32 (x_hat of the paper: after churn).
    slots: [plan.slots, B, C, *spatial] like x: the slope of PREDICT, the history of LINEAR rows.
    net_in: the next network input [copies * B, ...] in the network's dtype, contiguous or channels_last; it may have
    more channels than x, which stay zero. c_noise: its noise label, float32 [copies * B]. Two copies, one after the
    other, are what guidance evaluates in one doubled batch.
    table: a plan's table on the device, float64; base_row: int64 [B], sample b reads row base_row[b] + k.
    bad_row: int64 [B], the first row after which sample b was not finite, -1 while all is well.
    guide_scale: float64 [B], the last factor by which guidance was rescaled; None where no row rescales.
    known: what D is known to be, float32 like x, NaN where it is not; None where nothing is known.
    bound: what a backend remembers of these buffers.
    """

    x: Tensor
    slots: Tensor
    net_in: Tensor
    c_noise: Tensor
    table: Tensor
    base_row: Tensor
    bad_row: Tensor
    noise: Noise
    guide_scale: Tensor | None = None
    known: Tensor | None = None
    bound: Any = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def allocate(
        cls,
        table: Tensor,
        slots: int,
        noise: Noise,
        base_row: Tensor,
        *,
        state_dtype: torch.dtype,
        net_dtype: torch.dtype,
        layout: torch.memory_format = torch.channels_last,
        net_channels: int | None = None,
        copies: int = 1,
        rescales: bool = False,
        known: Tensor | None = None,
    ) -> "State":
        """Buffers for one sample an entry of base_row; layout is net_in's and applies to 4-D inputs."""
        device, batch, (channels, *spatial) = table.device, len(base_row), noise.shape
        net_shape = (copies * batch, net_channels or channels, *spatial)
        return cls(
            x=torch.zeros(batch, channels, *spatial, dtype=state_dtype, device=device),
            slots=torch.zeros(slots, batch, channels, *spatial, dtype=state_dtype, device=device),
            net_in=torch.zeros(net_shape, dtype=net_dtype, device=device).to(
                memory_format=layout if len(net_shape) == 4 else torch.contiguous_format
            ),
            c_noise=torch.zeros(copies * batch, dtype=torch.float32, device=device),
            table=table,
            base_row=base_row,
            bad_row=torch.full([batch], -1, dtype=torch.int64, device=device),
            noise=noise,
            guide_scale=torch.zeros(batch, dtype=torch.float64, device=device) if rescales else None,
            known=known,
        )

    def level(self, k: int) -> Level:
        """Of evaluation k, read from the table on the device: a captured loop finds it in the batch's own."""
        made, consumed = (self.table[self.base_row + row].to(torch.float32) for row in (k, k + 1))
        return Level(**{name: (made if name == "c_in" else consumed)[:, at] for name, at in _LEVEL.items()})
