"""Memory for the tensors of a remembered evaluation: planned once, as it is known how long each is needed."""

from bisect import insort
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

    The largest first, each as low as it fits: for this package's networks no more than is needed at once (in the order
    of need, each in the smallest gap, it was up to 45% more).
    """
    placed: list[Storage] = []  # by offset
    for each in sorted(storages, key=lambda storage: -storage.nbytes):
        each.offset = 0
        for other in placed:
            if other.last < each.first or each.last < other.first:
                continue
            if other.offset - each.offset >= each.nbytes:
                break
            each.offset = max(each.offset, _end(other))
        insort(placed, each, key=lambda storage: storage.offset)
    return max(map(_end, placed), default=0)


def _end(storage: Storage) -> int:
    return -(-(storage.offset + storage.nbytes) // _ALIGNED) * _ALIGNED


class Arena:
    """The memory of one evaluation. values: ``Planned`` tensors as they are in it, all else as it was given."""

    def __init__(self, nbytes: int, values: Sequence[Any]) -> None:
        with torch.inference_mode(False):  # what is made within could not be written to later, without
            memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
            self.values = [value.within(memory) if isinstance(value, Planned) else value for value in values]
        self.address = memory.data_ptr()
        self._memory = memory
