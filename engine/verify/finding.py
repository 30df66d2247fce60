"""One line of what `edm-engine verify` prints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was compared, of what, and how it came out.

    passed: false makes the command fail; None where nothing was compared, or nothing is promised.
    """

    check: str
    subject: str
    outcome: str
    passed: bool | None = True
