"""Whether two tensors are the same to the bit, and by how much they are not."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """``different`` of ``values`` values, by at most ``largest`` (infinite where one of two is no finite number)."""

    values: int = 0
    different: int = 0
    largest: float = 0.0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.values + other.values, self.different + other.different, max(self.largest, other.largest)
        )

    @property
    def equal(self) -> bool:
        return self.different == 0

    def __str__(self) -> str:
        if self.equal:
            return f"equal to the bit ({self.values:,} values)"
        return f"differs: {self.different:,} of {self.values:,} values, by {self.largest:.3g} at most"


def different_bits(got: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors of one shape and dtype differ, the sign of zeros included; all NaN are one value."""
    nan = expected.isnan()
    different = (got != expected) & ~nan
    if got.dtype.is_floating_point:
        different |= (got.signbit() != expected.signbit()) & ~nan
    return different | (got.isnan() != nan)


def compare(got: Tensor, expected: Tensor) -> Comparison:
    """Of two tensors of one shape and dtype, on one device."""
    different = different_bits(got, expected)
    count = int(different.sum())
    if not count:
        return Comparison(got.numel())
    apart = (got[different].double() - expected[different].double()).abs()
    largest = torch.where(apart.isnan(), torch.inf, apart).max().item()
    return Comparison(got.numel(), count, largest)
