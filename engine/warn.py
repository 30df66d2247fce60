"""Warnings that point at the caller's line, however deep inside the package they arise."""

import sys
import warnings

# Torch's decorators and hooks stand between our own functions.
_PASSED = (__name__.partition(".")[0], "torch")


def warn_caller(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """`warnings.warn` as if by the first caller outside. (Python 3.12 has skip_file_prefixes for this.)"""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        depth, frame = depth + 1, frame.f_back
    # One more for this function.
    warnings.warn(message, category, stacklevel=depth + 1)
