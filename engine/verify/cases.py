"""Random but legal situations for ``advance``: a table, a row for each sample, buffers, noise and a network output."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from .. import reference
from ..backends import Backend
from ..noise import seed_bits
from ..plan import KEEP_FROM, STORE_FROM, X_FROM, Op, Row
from ..state import Noise, State


@dataclass(frozen=True)
class Case:
    """What varies. ``ops`` names the op of each sample's row; rows are drawn from ``seed``."""

    ops: tuple[Op, ...] = (Op.BEGIN, Op.EULER, Op.PREDICT, Op.CORRECT, Op.LINEAR)
    shape: tuple[int, ...] = (3, 8, 8)
    state_dtype: torch.dtype = torch.float64
    net_dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.channels_last
    churn: bool = True
    noise: str = "philox"  # or "float32", "float64": buffers of that dtype
    extra_channels: int = 0  # network outputs beyond the image's
    padded_channels: int = 0  # network inputs beyond the image's
    slots: int = 4
    seed: int = 0
    rows: tuple[Row, ...] = ()  # instead of random ones for ``ops``
    guided: bool = False  # by a second network output, rescaling in some rows
    copies: int = 1  # of the network input
    known: bool = False  # some of D is

    def build(self, device: str = "cpu") -> tuple[Tensor, State]:
        """(F, state) on a device; ``advance(F, state, 2)`` is the call under test."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = list(self.rows) or [random_row(op, self.churn, self.slots, generator) for op in self.ops]
        if self.guided and not self.rows:
            rows = [guided_row(row, generator) for row in rows]
        batch, (channels, *spatial) = len(rows), self.shape
        table = torch.tensor([astuple(row) for row in [rows[0], *rows, rows[-1]]], dtype=torch.float64)
        state = State.allocate(
            table.to(device),
            self.slots,
            self._noise(batch, generator, device),
            (torch.randperm(batch, generator=generator) - 1).to(device),  # sample b is at row base_row[b] + 2
            state_dtype=self.state_dtype,
            net_dtype=self.net_dtype,
            layout=self.layout,
            net_channels=channels + self.padded_channels,
            copies=self.copies,
            rescales=self.guided,
            known=self._known(batch, generator, device),
        )
        state.x.copy_(torch.randn(state.x.shape, generator=generator, dtype=torch.float64) * 3)
        state.slots.copy_(torch.randn(state.slots.shape, generator=generator, dtype=torch.float64))
        F = torch.randn(batch, channels + self.extra_channels, *spatial, generator=generator).to(self.net_dtype)
        layout = self.layout if F.dim() == 4 else torch.contiguous_format
        return F.to(device).contiguous(memory_format=layout), state

    def other(self, F: Tensor) -> Tensor | None:
        """G, the output of the evaluation that guides, in another layout than F."""
        if not self.guided:
            return None
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(F.shape, generator=generator).to(F.dtype).to(F.device)

    def _known(self, batch: int, generator: torch.Generator, device: str) -> Tensor | None:
        if not self.known:
            return None
        values = torch.randn(batch, *self.shape, generator=generator)
        return torch.where(torch.rand(values.shape, generator=generator) < 0.5, values, torch.nan).to(device)

    def _noise(self, batch: int, generator: torch.Generator, device: str) -> Noise:
        seeds = [0, 2**64 - 1, 2**63, *range(5, 2 * batch)][:batch]
        if self.noise == "philox":
            return Noise(self.shape, seeds=seed_bits(seeds, torch.device(device)))
        dtype = getattr(torch, self.noise)
        latents = torch.randn(batch, *self.shape, generator=generator, dtype=dtype)
        eps = torch.randn(3, batch, *self.shape, generator=generator, dtype=dtype)
        return Noise(self.shape, latents=latents.to(device), eps=eps.to(device))


def guided_row(row: Row, generator: torch.Generator) -> Row:
    """The row with guidance, mostly; with rescaling, half of the time."""
    weight, kind = torch.rand(2, generator=generator).tolist()
    if kind < 0.25:
        return row
    return row.then(guide_F=3 * weight, guide_G=1 - 3 * weight, rescale=weight if kind < 0.6 else 0.0)


def random_row(op: Op, churn: bool, slots: int, generator: torch.Generator) -> Row:
    """A row with numbers of every size a plan may hold: sigma from 1e-5 to 1e5, now and then a denormal or a 1."""

    def number() -> float:
        kind = int(torch.randint(0, 10, [1], generator=generator))
        if kind == 0:
            return 1.0
        if kind == 1:
            return 5e-324 * int(torch.randint(1, 1000, [1], generator=generator))
        magnitude = math.exp((torch.rand(1, generator=generator, dtype=torch.float64).item() * 2 - 1) * math.log(1e5))
        return magnitude if torch.rand(1, generator=generator) < 0.5 else -magnitude

    def mix(names: tuple[str, ...]) -> dict[str, float]:
        usable = names[: 2 + slots]
        return {name: number() if torch.rand(1, generator=generator) < 0.6 else 0.0 for name in usable}

    def single() -> float:
        return torch.tensor(number(), dtype=torch.float32).item()  # the columns that are float32 by contract

    row = Row(
        op,
        sigma=abs(number()),
        c_skip=single(),
        c_out=single(),
        s=abs(number()) + 1e-5,
        begin_scale=abs(number()),
        slope_x=number(),
        slope_D=number(),
        slope_t=abs(number()) + 1e-5,
        h=-abs(number()),
        h_predict=-abs(number()),
        w_0=number(),
        w_1=number(),
        draw=int(torch.randint(0, 3, [1], generator=generator)),
        evaluate=float(torch.rand(1, generator=generator) < 0.8),
        s_next=abs(number()) + 1e-5,
        c_in=single(),
        c_noise=single(),
    )
    if op is Op.LINEAR:
        keep, store = torch.randperm(slots + 1, generator=generator)[:2].tolist() if slots else (0, 0)
        row = row.then(**(mix(X_FROM) | {"x_from_x": number()}), keep_slot=keep - 1, store_slot=store - 1)
        row = row.then(**mix(KEEP_FROM), **mix(STORE_FROM))
    if churn and op is not Op.PREDICT:
        row = row.then(ratio=abs(number()), std=abs(number()) if torch.rand(1, generator=generator) < 0.7 else 0.0)
    return row


def outcomes(case: Case, backend: Backend, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every buffer as the backend leaves it and as the reference does, by name, both on the CPU.

    The reference runs on the CPU, so that nothing it computes is computed by what is under test.
    """
    output, expected = case.build()
    state = moved(expected, device)
    only_begin = {row.op for row in case.rows or [Row(op) for op in case.ops]} == {Op.BEGIN}
    F, G = (None, None) if only_begin else (output, case.other(output))
    reference.advance(F, expected, 2, G)
    backend.advance(None if F is None else F.to(device), state, 2, None if G is None else G.to(device))
    for name in ("x", "slots", "net_in", "c_noise", "bad_row", *(["guide_scale"] if case.guided else [])):
        yield name, getattr(state, name).cpu(), getattr(expected, name)


def moved(state: State, device: str | torch.device) -> State:
    """A copy of a state on another device, strides kept."""

    def there(t: object) -> object:
        return t.to(device, copy=True) if isinstance(t, Tensor) else t

    tensors = {name: there(t) for name, t in vars(state).items() if name != "noise"}
    noise = replace(state.noise, **{name: there(t) for name, t in vars(state.noise).items()})  # type: ignore[arg-type]
    return State(**tensors, noise=noise)  # type: ignore[arg-type]


def every_case(net_dtype: torch.dtype) -> Iterator[Case]:
    """All opcodes in one batch, over what else ``advance`` may be handed with a network of this dtype."""
    states = (torch.float64, torch.float32)
    layouts = (torch.contiguous_format, torch.channels_last)
    shapes = itertools.cycle([(3, 32, 32), (3, 5, 7), (1, 28, 28)])
    noises = itertools.cycle(["philox", "philox", "philox", "float32", "float64"])
    for seed, (state_dtype, layout, guided) in enumerate(itertools.product(states, layouts, (False, True))):
        case = Case(tuple(Op) * 2, next(shapes), state_dtype, net_dtype, layout, seed=seed, noise=next(noises))
        yield replace(case, guided=guided, known=guided, copies=1 + guided, padded_channels=5 * (seed % 2))
