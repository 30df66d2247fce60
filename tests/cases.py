"""Comparisons as assertions; what is compared is `engine.verify`'s."""

from torch import Tensor

from engine.backends import Backend
from engine.verify.cases import Case, outcomes
from engine.verify.compare import different_bits


def check(backend: Backend, case: Case) -> None:
    """The backend leaves every buffer with the bits of the reference."""
    for name, got, expected in outcomes(case, backend):
        assert_same_bits(got, expected, f"{name} of {case}")
        assert got.stride() == expected.stride()


def assert_same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    """Equal including the sign of zeros and the places of NaN."""
    assert got.dtype == expected.dtype, what
    different = different_bits(got, expected)
    if different.any():
        where = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(different.sum())} of {got.numel()} elements differ, first at {where}: "
            f"{got[where].item()!r} instead of {expected[where].item()!r}"
        )
