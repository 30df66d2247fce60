"""How bad input is refused: by one line, "X is <value>; allowed: <what>". The numbers of samplers,
preconditionings, denoisers and guidance are checked here."""

import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

ReadBy = Mapping[str, Mapping[str, tuple[object, ...]]]  # parameter -> choice -> its values that read the parameter


def require(name: str, value: object, ok: bool, allowed: str) -> None:
    """Raises ValueError unless ``ok``."""
    if not ok:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def is_number(value: Any, kind: type = numbers.Real) -> bool:
    """A real number of Python or NumPy that is not NaN; truth values are not numbers."""
    return type(value) is not bool and isinstance(value, kind) and bool(value == value)


def is_integer(value: Any, lowest: int, highest: int | None = None) -> bool:
    """A whole number of Python or NumPy from ``lowest`` to ``highest``."""
    return is_number(value, numbers.Integral) and lowest <= value and (highest is None or value <= highest)


def number(name: str, value: Any, allowed: str, ok: Callable[[Any], bool]) -> float:
    """A number for which ``ok`` holds, as Python's own int or float. Raises ValueError for anything else."""
    require(name, value, is_number(value) and bool(ok(value)), allowed)
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """An integer from ``lowest`` to ``highest``, as Python's own. Raises ValueError for anything else."""
    ok = is_integer(value, lowest, highest)
    require(name, value, ok, f"an integer from {lowest}" + ("" if highest is None else f" to {highest}"))
    return int(value)


def check_numbers(record: object, names: str, allowed: str, ok: Callable[[Any], bool]) -> None:
    """`number` for fields of a frozen record, whose names stand in ``names`` with spaces between."""
    for name in names.split():
        object.__setattr__(record, name, number(name, getattr(record, name), allowed, ok))


def check_integers(record: object, names: str, lowest: int, highest: int | None = None) -> None:
    """`integer` for fields of a frozen record."""
    for name in names.split():
        object.__setattr__(record, name, integer(name, getattr(record, name), lowest, highest))


def require_read(read_by: ReadBy, *records: Any) -> None:
    """Raises ValueError for a field, other than its default, that no choice among the records' fields reads.

    Such a field would be ignored, and the caller not told.
    """
    values = {each.name: getattr(record, each.name) for record in records for each in fields(record)}
    defaults = {each.name: each.default for record in records for each in fields(record)}
    for name, choices in read_by.items():
        read = values[name] == defaults[name] or any(values.get(choice) in some for choice, some in choices.items())
        unless = " or ".join(f"{choice} is {', '.join(map(repr, some))}" for choice, some in choices.items())
        require(name, values[name], read, f"{defaults[name]!r}, unless {unless}")
