"""Tensors as a checkpoint stores them: a view of a storage, which is bytes of the file until it is asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
# what a pickle calls a storage's class -> dtype; where it lay does not matter: everything is read onto the CPU
STORAGE_CLASSES = {
    f"{module}.{kind}Storage": dtype for module in ("torch", "torch.cuda") for kind, dtype in _STORAGES.items()
} | {"torch.storage.UntypedStorage": torch.uint8}
_LARGEST = 2**62
_MOST_DIMENSIONS = 8


class Budget:
    """Bytes that a file may still make of itself: never more than it has."""

    def __init__(self, size: int) -> None:
        self._size, self._left = size, size

    def spend(self, count: int, what: str) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"{what} claim more than the {self._size} bytes it has")


@dataclass(eq=False)
class Storage:
    """``numel`` elements of a dtype; ``read(start, count)`` copies bytes of it out of the file."""

    dtype: torch.dtype
    numel: int
    read: Callable[[int, int], bytes] | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A view that was checked to lie within its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def tensor(self) -> Tensor:
        """The tensor, contiguous, in memory of its own."""
        dtype, width = self.storage.dtype, self.storage.dtype.itemsize
        if not self.nbytes:
            return torch.empty(self.size, dtype=dtype)
        assert self.storage.read is not None  # every storage has its bytes when the file has been read
        extent = _extent(self.size, self.stride)
        data = self.storage.read(self.offset * width, extent * width)
        if len(data) != extent * width:
            raise ValueError(f"a storage ends after {len(data)} of {extent * width} bytes")
        flat = torch.frombuffer(bytearray(data), dtype=dtype)
        return flat.as_strided(self.size, self.stride).contiguous()


def stored(tensor: Tensor) -> StoredTensor:
    """A tensor that has been loaded, as if it were still in its file."""
    dense = tensor.detach().contiguous()
    data = dense.reshape(-1).view(torch.uint8)

    def read(start: int, count: int) -> bytes:
        return data[start : start + count].numpy().tobytes()

    return StoredTensor(Storage(dense.dtype, dense.numel(), read), 0, tuple(dense.shape), dense.stride())


def rebuild_tensor(storage: object, offset: object, size: object, stride: object, budget: Budget) -> StoredTensor:
    """The view that a file describes; ValueError if it reaches beyond its storage or repeats elements."""
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor lies in a {type(storage).__name__}, not in a storage")
    shape, steps = _counts(size, "a tensor's size"), _counts(stride, "a tensor's stride")
    (start,) = _counts((offset,), "a tensor's offset")
    if len(shape) != len(steps):
        raise ValueError(f"a tensor has {len(shape)} sizes and {len(steps)} strides")
    numel = math.prod(shape)
    if numel > storage.numel or (numel and start + _extent(shape, steps) > storage.numel):
        raise ValueError(f"a tensor of {numel} elements reaches beyond its storage of {storage.numel}")
    tensor = StoredTensor(storage, start, shape, steps)
    budget.spend(tensor.nbytes, "its tensors")
    return tensor


def count(value: object, what: str) -> int:
    """An integer from 0 that fits in 64 bits."""
    if not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise ValueError(f"{what} is not an integer from 0 to {_LARGEST}")
    return int(value)


def _counts(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"{what} is not a tuple of at most {_MOST_DIMENSIONS}")
    return tuple(count(value, what) for value in values)


def _extent(size: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last of a view that has any."""
    return 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
