"""The bar that a long job shows on stderr."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, unit: str, doing: str, **options: Any) -> "tqdm[Any]":
    """tqdm's bar; where stderr is no terminal a line every ten seconds, so that logs stay short."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=unit, desc=doing, mininterval=interval, maxinterval=max(interval, 10.0), **options)
