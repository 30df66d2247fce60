"""Parameter types of the command line."""

import json
import os
from pathlib import Path
from typing import Any

import click

_MOST_INTEGERS = 10_000_000  # all are held at once, here and by the job that they name
_MOST_DIGITS = 20  # of 64 bits


class IntRange(click.ParamType):
    """``0-9``, ``3`` or ``0-4,7,20-29``: a list of integers in the order written."""

    name = "ints"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        numbers: list[int] = []
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            low, high = _integer(first), _integer(last if dash else first)
            if low is None or high is None or high < low:
                self.fail(f"{value!r}; allowed: integers and rising ranges such as 0-9 or 0-4,7", param, ctx)
            if len(numbers) + high - low >= _MOST_INTEGERS:
                self.fail(f"{value!r} names too many; allowed: at most {_MOST_INTEGERS:,} integers", param, ctx)
            numbers.extend(range(low, high + 1))
        return numbers


def _integer(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


class FloatList(click.ParamType):
    """``0.5`` or ``0.2,5``: numbers, as many as ``length`` if it is given."""

    name = "floats"

    def __init__(self, length: int | None = None) -> None:
        self.length = length

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or self.length not in (None, len(numbers)):
            self.fail(f"{value!r}; allowed: {self.length or 'one or more'} numbers with commas between", param, ctx)
        return numbers


class JsonObject(click.ParamType):
    """``{"img_resolution": 64}``."""

    name = "json"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = value if isinstance(value, dict) else json.loads(str(value))
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            self.fail(f'{value!r}; allowed: a JSON object such as {{"img_resolution": 64}}', param, ctx)
        return parsed


class OutFile(click.Path):
    """A file to be written, after work that would be lost: whether it can be is asked first. suffix: it must have."""

    def __init__(self, suffix: str = "") -> None:
        super().__init__(path_type=str, dir_okay=False)
        self.suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        if not path.name.lower().endswith(self.suffix):
            self.fail(f"{str(path)!r}; allowed: a file of this kind, {self.suffix}", param, ctx)
        parent = next(p for p in path.absolute().parents if os.path.exists(p))
        if not path.name or not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
            self.fail(
                f"{str(path)!r}; allowed: a file in a folder that can be written, which {parent} is not", param, ctx
            )
        return path


class BatchSize(click.ParamType):
    """``64`` or ``auto``."""

    name = "int|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdecimal():
            self.fail(f"{value!r}; allowed: an integer from 1, or auto", param, ctx)
        return int(str(value))


DTYPES = ("float32", "bfloat16", "float16")
