"""What one batch is made from, ``Inputs``, and where it is drawn, ``Buffers``."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from .state import Noise, State
from .transfer import to_device


@dataclass(frozen=True)
class Spec:
    """What buffers depend on beside their inputs' shapes.

    slots: state-sized ones beside x; copies: of the network input; rescales: whether guidance does.
    """

    device: torch.device
    state_dtype: torch.dtype
    net_dtype: torch.dtype
    net_channels: int
    slots: int
    copies: int
    rescales: bool


@dataclass(frozen=True)
class Inputs:
    """All that one batch has of its own. Batches of one `signature` differ in numbers only.

    table: the plans' rows, float64 [rows, columns], on the host; room: how many rows buffers are to hold, so that other
    plans fit them too. base_row: int64 [B], on the host. labels: float32 [copies * B, label_dim] or None; known: what D
    is known to be, float32 [B, C, *spatial], or None. The rest is on the device. guided: for each row of the plan,
    whether any sample's evaluation is guided.
    """

    spec: Spec
    table: Tensor
    room: int
    base_row: Tensor
    noise: Noise
    labels: Tensor | None
    known: Tensor | None
    guided: tuple[bool, ...]

    @property
    def signature(self) -> Hashable:
        """What a captured loop takes for granted: where data lies, how much and of what dtype."""
        tensors = (self.base_row, self.noise.seeds, self.noise.latents, self.noise.eps, self.labels, self.known)
        return (self.spec, self.room, *(None if t is None else (tuple(t.shape), t.dtype) for t in tensors))


@dataclass
class Buffers:
    """A batch's state and labels on the device."""

    state: State
    labels: Tensor | None

    @classmethod
    def of(cls, inputs: Inputs) -> "Buffers":
        """For this batch alone: its inputs themselves, where they need not be copied."""
        device = inputs.spec.device
        return cls._allocate(inputs, to_device(inputs.table, device), to_device(inputs.base_row, device), inputs.noise)

    @classmethod
    def lasting(cls, inputs: Inputs) -> "Buffers":
        """For all batches of this signature, one after the other; `load` fills them."""
        device, noise = inputs.spec.device, inputs.noise
        table = torch.zeros(inputs.room, inputs.table.shape[1], dtype=torch.float64, device=device)
        base_row = torch.zeros(inputs.base_row.shape, dtype=torch.int64, device=device)
        made = cls._allocate(
            inputs, table, base_row, Noise(noise.shape, *map(_like, (noise.seeds, noise.latents, noise.eps)))
        )
        made.labels = _like(made.labels)
        made.state.known = _like(made.state.known)
        return made

    @classmethod
    def _allocate(cls, inputs: Inputs, table: Tensor, base_row: Tensor, noise: Noise) -> "Buffers":
        spec = inputs.spec
        state = State.allocate(
            table,
            spec.slots,
            noise,
            base_row,
            state_dtype=spec.state_dtype,
            net_dtype=spec.net_dtype,
            net_channels=spec.net_channels,
            copies=spec.copies,
            rescales=spec.rescales,
            known=inputs.known,
        )
        return cls(state, inputs.labels)

    def load(self, inputs: Inputs) -> None:
        """Another batch's inputs, copied in place without waiting for the device; slots and bad_row begin anew."""
        state, device = self.state, inputs.spec.device
        state.table[: len(inputs.table)].copy_(to_device(inputs.table, device))
        state.base_row.copy_(to_device(inputs.base_row, device))
        pairs = [(self.labels, inputs.labels), (state.known, inputs.known)]
        pairs += [(getattr(state.noise, name), getattr(inputs.noise, name)) for name in ("seeds", "latents", "eps")]
        for target, source in pairs:
            if target is not None and source is not None:
                target.copy_(source)
        state.slots.zero_()
        state.bad_row.fill_(-1)

    @property
    def nbytes(self) -> int:
        """Of all buffers."""
        state, noise = self.state, self.state.noise
        tensors = [state.x, state.slots, state.net_in, state.c_noise, state.table, state.base_row, state.bad_row]
        given = [state.guide_scale, state.known, noise.seeds, noise.latents, noise.eps, self.labels]
        return sum(t.nbytes for t in (*tensors, *given) if t is not None)


def _like(t: Tensor | None) -> Tensor | None:
    return None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
