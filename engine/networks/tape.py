"""A recorded evaluation: torch's operations one by one, our own calls that follow each other as one
(`_native.Program`), what they fill in an arena."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arena import Arena, Storage

Call = Callable[..., Any]


@cache
def extension():  # type: ignore[no-untyped-def]  # a module; its types are in engine/_native.pyi
    """Imported once: to import it in every call took 2% of a small network's time at batch 1."""
    from engine import _native

    return _native


def make_call(kind: str, addresses: Sequence[int], numbers: Sequence[Any]) -> Any:
    return getattr(extension(), f"{kind}Call")(addresses, *numbers)


def shown(kind: str) -> AbstractContextManager[object]:
    """Makes a call of ours an event of torch's profiler, where that is on; otherwise costs 0.2 us."""
    return torch.profiler.record_function(f"edm::{kind}") if _profiled() else nullcontext()


def _profiled() -> bool:
    return torch.autograd.profiler._is_profiler_enabled


class Within(NamedTuple):
    """An address in the arena."""

    storage: Storage
    start: int


class Elsewhere(NamedTuple):
    """The address of a tensor at this place, another in each replay."""

    place: int


class Native(NamedTuple):
    """One of our calls, recorded; an int is an address that stays."""

    kind: str
    addresses: list[Within | Elsewhere | int]
    numbers: tuple[Any, ...]


class Step(NamedTuple):
    """call(values at ``reads``), whose results go to ``writes``; then nobody needs what is at ``drops``."""

    call: Call
    reads: list[int]
    writes: int | list[int]
    drops: list[int]


class Run:
    """Calls of ours that follow each other: run(the arena's address, the tensors at ``places``)."""

    def __init__(self, recorded: Sequence[Native]) -> None:
        self.places: list[int] = []
        self._program, self._kinds = extension().Program(), [call.kind for call in recorded]
        for call in recorded:
            addresses, bases = zip(*map(self._counted, call.addresses), strict=True)
            self._program.add(make_call(call.kind, addresses, call.numbers), bases)

    def _counted(self, address: Within | Elsewhere | int) -> tuple[int, int]:
        """What is added to a base, and its number: 0 is nothing, 1 the arena, then come the tensors."""
        if isinstance(address, int):
            return address, 0
        if isinstance(address, Within):
            return address.storage.offset + address.start, 1
        if address.place not in self.places:
            self.places.append(address.place)
        return 0, 2 + self.places.index(address.place)

    def __call__(self, arena: int, *elsewhere: Tensor) -> tuple[()]:
        bases, threads = [0, arena, *(t.data_ptr() for t in elsewhere)], torch.get_num_threads()
        if not _profiled():
            self._program.run(bases, 0, len(self._kinds), threads)
            return ()
        for i, kind in enumerate(self._kinds):
            with shown(kind):
                self._program.run(bases, i, i + 1, threads)
        return ()


class Tape:
    """An evaluation that was recorded. Places of values: the arena's address, the inputs, then what came up."""

    def __init__(self, steps: list[Step], values: list[Any], out: int, nbytes: int) -> None:
        self._steps, self._values, self._out, self._nbytes = steps, values, out, nbytes
        self._arenas: list[Arena] = []  # as many as there were threads at once
        self._idle: list[Arena] = []

    @property
    def nbytes(self) -> int:
        """Of its arenas, which it keeps."""
        return self._nbytes * len(self._arenas)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The evaluation of other inputs of the same shapes."""
        try:
            arena = self._idle.pop()
        except IndexError:
            arena = Arena(self._nbytes, self._values)
            self._arenas.append(arena)
        try:
            return self._replay([arena.address, *inputs, *arena.values[1 + len(inputs) :]])
        finally:
            self._idle.append(arena)

    def _replay(self, values: list[Any]) -> Tensor:
        for call, reads, writes, drops in self._steps:
            made = call(*[values[place] for place in reads])
            if isinstance(writes, int):
                values[writes] = made
            else:
                for place, each in zip(writes, made, strict=True):
                    values[place] = each
            for place in drops:
                values[place] = None
        out: Tensor = values[self._out]
        return out
