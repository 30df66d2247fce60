"""Memory for the tensors of a remembered evaluation: planned once, as it is known how long each is needed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNED = 64  # bytes: a line of the cache, as torch allocates


@dataclass(eq=False)
class Storage:
    """Bytes that steps [first, last] need, from `plan` on at an offset of an arena."""

    nbytes: int
    first: int
    last: int
    offset: int = 0


class Planned(NamedTuple):
    """A tensor in a storage; start: its first element."""

    storage: Storage
    dtype: torch.dtype
    start: int
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def like(cls, t: Tensor, storage: Storage) -> "Planned":
        return cls(storage, t.dtype, int(t.storage_offset()), t.shape, t.stride())

    def within(self, memory: Tensor) -> Tensor:
        """The tensor in an arena's memory."""
        first = self.storage.offset // self.dtype.itemsize + self.start
        flat = torch.empty(0, dtype=self.dtype, device=memory.device)
        return flat.set_(memory.untyped_storage(), first, self.shape, self.stride)


def plan(storages: Iterable[Storage]) -> int:
    """Give each storage its offset, none where another is needed at the same time; returns the bytes of an arena.

    In the order in which they are needed, each in the smallest gap that holds it: 0 to 3% more than the most that is
    needed at once, for this package's networks.
    """
    alive: list[Storage] = []  # by offset
    size = 0
    for each in sorted(storages, key=lambda storage: storage.first):
        alive = [other for other in alive if other.last >= each.first]
        ends = [0, *(_end(other) for other in alive)]
        gaps = [(other.offset - end, i) for i, (end, other) in enumerate(zip(ends, alive, strict=False))]
        _, place = min((gap for gap in gaps if gap[0] >= each.nbytes), default=(0, len(alive)))
        each.offset = ends[place]
        alive.insert(place, each)
        size = max(size, _end(each))
    return size


def _end(storage: Storage) -> int:
    return -(-(storage.offset + storage.nbytes) // _ALIGNED) * _ALIGNED


class Arena:
    """The memory of one evaluation. values: ``Planned`` tensors as they are in it, all else as it was given."""

    def __init__(self, nbytes: int, values: Sequence[Any]) -> None:
        with torch.inference_mode(False):  # what is made within could not be written to later, without
            memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
            self.values = [value.within(memory) if isinstance(value, Planned) else value for value in values]
        self.nbytes, self.address = nbytes, memory.data_ptr()
        self._memory = memory
