"""Samplers as tables of LINEAR rows: a generator yields the rows of a sequence of noise levels, and that is all.

    @table(source="Song, Meng, Ermon 2021, equation 12", stochastic="eta > 0")
    def ddim(sigmas, eta=0.0):
        for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            up, down = ...
            yield linear(sigma, x=down / sigma, D=1 - down / sigma, std=up, draw=i)

The decorator turns it into ``samplers.ddim(steps=18, sigma_min=None, ..., eta=0.0) -> TableSampler`` and puts it on the
list: the command line, the documentation's table and the tests over all backends find it there.
"""

import inspect
import itertools
import math
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..allowed import require
from ..plan import X_FROM, Op, Row, Sampler
from ..preconditioning import Preconditioning
from .levels import Levels, require_levels
from .registry import listed

_HUGE = 1e150  # stands for an infinite sigma; its square is finite
Rows = Callable[..., Iterator[Row]]
_SHARED = [
    field for field in fields(Levels) if field.name in ("steps", "sigma_min", "sigma_max", "rho", "discretization")
]
_NEXT = -1  # of draws: one that no other row has
_SHARED_DOC = """
steps: the number of noise levels, falling from sigma_max to sigma_min; then comes 0. discretization: how they are
spaced (`Levels`): "edm" evenly in sigma^(1/rho), "vp", "ve" and "iddpm" as in their papers; "leading", "linspace" and
"trailing" are timesteps of a discrete-time model, which has its own range. A range of None is the discretization's
published one; it is clamped to the network's when a plan is built.
Raises ValueError naming an option out of range, or one other than its default that the discretization does not read
(rho is read by "edm"), and TypeError naming an option that there is not.
"""


@dataclass(frozen=True)
class TableSampler(Sampler):
    """x = y + sigma n (s = 1), advanced by the LINEAR rows that ``generate`` yields for the levels."""

    generate: Rows
    levels: Levels
    options: tuple[tuple[str, object], ...] = ()
    zero_snr: bool = False

    def __post_init__(self) -> None:
        require("generate", self.generate, callable(self.generate), "a function that yields rows made by linear(...)")
        require_levels(self.levels, self)
        self._rows([2.0, 1.0, 0.0])  # raises for an option out of range now, not when a plan is built

    def __reduce__(self) -> tuple[Any, ...]:
        """By the function that `table` made of ``generate`` and put in its place, under whose name it is found."""
        make = getattr(sys.modules.get(self.generate.__module__), self.generate.__name__, None)
        if getattr(make, "__wrapped__", None) is not self.generate:
            raise pickle.PicklingError(f"{self.generate.__name__} is not the sampler of that name in its module")
        return _again, (make, self.levels, self.options, self.zero_snr)

    def __copy__(self) -> "TableSampler":
        return self  # frozen; and one without such a name has copies too

    def __deepcopy__(self, memo: dict[int, Any]) -> "TableSampler":
        return self

    @property
    def steps(self) -> int:
        return self.levels.steps

    @property
    def scaled(self) -> bool:
        return self.levels.timesteps

    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        name = self.generate.__name__
        levels = self.levels
        known = levels.sigmas(preconditioning) if self.zero_snr else levels.finite_sigmas(preconditioning, name)
        sigmas = known.tolist()
        try:
            rows = [Row(Op.BEGIN, begin_scale=sigmas[0]), *self._rows([min(sigma, _HUGE) for sigma in sigmas])]
        except ZeroDivisionError:
            twice = next((here for here, there in itertools.pairwise(sigmas) if here == there), None)
            if twice is None:
                raise
            same = f"fewer for {name}: two noise levels round to {twice:.6g}, the nearest there is"
            raise ValueError(f"steps is {self.steps}; allowed: {same}") from None
        return _scale(rows) if self.scaled else rows

    def _rows(self, sigmas: Sequence[float]) -> list[Row]:
        made: object = self.generate(sigmas, **dict(self.options))
        rows = list(made) if isinstance(made, Iterable) else made
        ok = isinstance(rows, list) and len(rows) > 0 and all(isinstance(row, Row) for row in rows)
        require(f"what {self.generate.__name__} yields", rows, ok, "rows made by linear(...), one or more")
        return _numbered(rows)  # type: ignore[arg-type]

    def __str__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options)
        return f"{self.generate.__name__}({self.levels}{options})"


def _again(make: Any, *fields: Any) -> TableSampler:
    return TableSampler(make.__wrapped__, *fields)


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """With a draw of its own for each row that asks for the next."""
    taken = {row.draw for row in rows if row.std}
    free = (draw for draw in itertools.count() if draw not in taken)
    return [row if row.draw != _NEXT else row.then(draw=next(free) if row.std else 0) for row in rows]


def _scale(rows: Sequence[Row]) -> list[Row]:
    """The rows for s x, s = 1 / sqrt(1 + sigma^2), instead of x; what slots hold stays as it is.

    Infinite sigma came as `_HUGE`, whose products with s are the limits to the last bit of a float64.
    """
    s = [(1 + row.sigma**2) ** -0.5 for row in rows[1:]] + [1.0]
    scaled = [Row(Op.BEGIN, begin_scale=rows[1].sigma * s[0])]
    for row, here, there in zip(rows[1:], s[:-1], s[1:], strict=True):
        changes = {name: getattr(row, name) * there for name in (*X_FROM[1:], "std")}
        changes |= {name: getattr(row, name) / here for name in ("keep_from_x", "store_from_x")}
        changes["x_from_x"] = row.x_from_x * (there / here)
        changes["sigma"] = row.sigma if row.sigma < _HUGE else math.inf
        scaled.append(row.then(**changes))
    return scaled


def linear(
    sigma: float,
    *,
    x: float = 0.0,
    D: float = 0.0,
    slots: Iterable[float] = (),
    std: float = 0.0,
    draw: int | None = None,
    keep: tuple[int, float, float, Iterable[float]] | None = None,
    store: tuple[int, float, float] | None = None,
) -> Row:
    """A row that consumes D(x; sigma): x = x * x + D * D + slots[0] * slot 0 + ... + std * noise.

    draw: the index of the noise among a sample's own, 0 to 2^53; None for one that no other row has, counting up.
    keep: (slot, from x, from D, from each slot); store: (slot, from x, from D): what goes to slots meanwhile.
    """
    sums: dict[str, float] = {"x_from_x": x, "x_from_D": D} | {f"x_from_{j}": c for j, c in enumerate(slots)}
    if keep is not None:
        slot, from_x, from_D, from_slots = keep
        sums |= {"keep_slot": slot, "keep_from_x": from_x, "keep_from_D": from_D}
        sums |= {f"keep_from_{j}": c for j, c in enumerate(from_slots)}
    if store is not None:
        sums |= dict(zip(("store_slot", "store_from_x", "store_from_D"), store, strict=True))
    return Row(Op.LINEAR, sigma=sigma, std=std, draw=_NEXT if draw is None else draw, **sums)  # type: ignore[arg-type]


def table(zero_snr: bool = False, **properties: Any) -> Callable[[Rows], Callable[..., TableSampler]]:
    """Makes a sampler of a generator of rows, with the options of `Levels` in front of its own, and lists it.

    properties: those of `Entry`, as keywords; ``source`` is needed. The options of `Levels` are told behind the
    generator's docstring.
    """

    def wrap(generate: Rows) -> Callable[..., TableSampler]:
        own = list(inspect.signature(generate).parameters.values())[1:]
        shared = [
            inspect.Parameter(f.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=f.default, annotation=f.type)
            for f in _SHARED
        ]
        signature = inspect.Signature([*shared, *own], return_annotation=TableSampler)

        def make(*arguments: object, **keywords: object) -> TableSampler:
            try:
                given = signature.bind(*arguments, **keywords)
            except TypeError as error:
                raise TypeError(f"{make.__name__}() {error}; allowed: {', '.join(signature.parameters)}") from None
            given.apply_defaults()
            levels = Levels(**{f.name: given.arguments.pop(f.name) for f in _SHARED})
            return TableSampler(generate, levels, tuple(given.arguments.items()), zero_snr)

        make.__wrapped__ = generate  # type: ignore[attr-defined]
        make.__name__ = make.__qualname__ = generate.__name__
        make.__doc__ = f"{inspect.cleandoc(generate.__doc__ or '')}\n{_SHARED_DOC}".lstrip()
        make.__module__ = generate.__module__
        make.__signature__ = signature  # type: ignore[attr-defined]
        return listed(zero_snr=zero_snr, **properties)(make)

    return wrap
