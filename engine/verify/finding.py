"""One line of what `edm-engine verify` prints."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Finding:
    """What was compared, of what, and how it came out.

    passed: false makes the command fail; None where nothing was compared, or nothing is promised.
    """

    check: str
    subject: str
    outcome: str
    passed: bool | None = True


def name_of(dtype: torch.dtype) -> str:
    """As findings and files name it: "float32"."""
    return str(dtype).removeprefix("torch.")
