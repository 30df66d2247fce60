"""Plan: a sampler bound to a preconditioning, compiled to an immutable float64 table with one row per evaluation.

A row holds everything `advance` needs to go from "F has just been evaluated" to "the next network input is ready".
Row 0 is BEGIN (there is no F yet); row k + 1 consumes evaluation k.
"""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from enum import IntEnum

import numpy as np
import torch

from .allowed import require
from .preconditioning import Coefficients, Preconditioning, require_preconditioning


class Op(IntEnum):
    """What a row does once D of its evaluation is known."""

    BEGIN = 0  # x = begin_scale * latents
    EULER = 1  # x = x + h * slope
    PREDICT = 2  # slot 0 = slope, x stays; the next evaluation is at x + h * slope
    CORRECT = 3  # x = x + h * (w_0 * slot 0 + w_1 * slope), slope taken at x + h_predict * slot 0
    LINEAR = 4  # x = a linear combination of x, D and the slots; up to two slots are written


SLOTS = 4  # state-sized buffers a plan may use at most: a slope, a base point, history


@dataclass(frozen=True)
class Row:
    """One row. Arithmetic, per element and in this order (x_eval is where F was evaluated):

        F      = guide_F * F + guide_G * G           if ``guide_G``, in float32: guidance; G is the other evaluation
        F      = F * scale                           if ``rescale``; scale from `reference.guide_scale`
        D      = c_skip * float32(x_eval / s) + c_out * F                        in float32
        D      = known, where that is a number       if the state has ``known``: inpainting
        slope  = (slope_x * x_eval - slope_D * D) / slope_t                      in the state dtype, as all below
        x      = the op's update
        x      = ratio * x + std * eps(draw)                                     churn, not after PREDICT
        net_in = c_in * float32(x_eval' / s_next)                                if ``evaluate``

    EDM's slope (x - D) / t_hat has slope_x = slope_D = 1; multiplying by one is exact, so one formula serves all.
    Noise with std = 0 is neither drawn nor added.

    LINEAR forms x_from_x * x + x_from_D * D + x_from_0 * slot 0 + ... from left to right, leaving out the terms whose
    coefficient is 0 (their slot is not read). The same sums with keep_from_* and store_from_* go to the slots
    ``keep_slot`` and ``store_slot`` (-1: none); all three read the values from before the row.
    """

    op: Op
    # Noise level of the evaluation this row consumes: decides c_* and guidance; kernels do not read it.
    sigma: float = math.nan
    c_skip: float = 0.0
    c_out: float = 0.0
    guide_F: float = 1.0
    guide_G: float = 0.0
    rescale: float = 0.0
    s: float = 1.0
    begin_scale: float = 0.0
    slope_x: float = 1.0
    slope_D: float = 1.0
    slope_t: float = 1.0
    h: float = 0.0
    h_predict: float = 0.0
    w_0: float = 0.0
    w_1: float = 0.0
    x_from_x: float = 0.0
    x_from_D: float = 0.0
    x_from_0: float = 0.0
    x_from_1: float = 0.0
    x_from_2: float = 0.0
    x_from_3: float = 0.0
    keep_slot: int = -1
    keep_from_x: float = 0.0
    keep_from_D: float = 0.0
    keep_from_0: float = 0.0
    keep_from_1: float = 0.0
    keep_from_2: float = 0.0
    keep_from_3: float = 0.0
    store_slot: int = -1
    store_from_x: float = 0.0
    store_from_D: float = 0.0
    ratio: float = 1.0
    std: float = 0.0
    draw: int = 0  # index of the churn noise, not counting the latents
    evaluate: float = 0.0  # 1 if a network evaluation follows
    s_next: float = 1.0
    c_in: float = 0.0
    c_noise: float = 0.0

    def then(self, **changes: float) -> "Row":
        """The row with other numbers in some columns."""
        return replace(self, **changes)  # type: ignore[arg-type]


COLUMNS = tuple(field.name for field in fields(Row))
X_FROM, KEEP_FROM, STORE_FROM = (
    tuple(name for name in COLUMNS if name.startswith(prefix)) for prefix in ("x_from_", "keep_from_", "store_from_")
)


Guide = Callable[[float], dict[str, float]]
Limit = tuple[str, Callable[[float], bool]]  # what is allowed, and whether a number is


class Sampler(ABC):
    """What to compute, a small frozen record of what the user chooses; bound to a preconditioning it becomes a plan."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of steps."""

    @property
    def scaled(self) -> bool:
        """Whether the rows carry s x with s = 1 / sqrt(1 + sigma^2), and so stay finite where sigma is not."""
        return False

    @abstractmethod
    def rows(self, preconditioning: Preconditioning) -> list[Row]:
        """A BEGIN row, then one row per network evaluation; where there is one noise a step, step i draws noise i."""


class Plan:
    """The compiled table of a sampler for one preconditioning.

    Attributes: ``table`` float64 [nfe + 1, len(COLUMNS)], read-only; ``rows``, the same as records; ``nfe``, number
    of network evaluations; ``sigmas``, their noise levels; ``s_begin``, the scale s(t_0) of x at the start; ``steps``;
    ``draws``, how many noises a sample may need: one a step, or more where the rows number more; ``stochastic``,
    whether any row adds noise; ``slots``, how many state-sized buffers the rows use beside x.
    Raises ValueError when a row breaks an invariant: a sampler that fills its table wrongly does not run.
    """

    def __init__(self, sampler: Sampler, preconditioning: Preconditioning) -> None:
        require("sampler", sampler, isinstance(sampler, Sampler), "an engine.Sampler with rows, which rk45 has not")
        require_preconditioning(preconditioning)
        self.sampler, self.preconditioning = sampler, preconditioning
        self.steps = sampler.steps
        rows = sampler.rows(preconditioning)
        ok = isinstance(rows, list | tuple) and all(isinstance(row, Row) for row in rows)
        require(f"rows of {type(sampler).__name__}", rows, ok, "a list of engine.plan.Row")
        _check_order(rows)
        coefficients = preconditioning.scaled_coefficients if sampler.scaled else preconditioning.coefficients
        self._fill(_precondition(rows, coefficients))
        self.draws = max(self.steps, *(1 + int(row.draw) for row in rows))
        self.nfe = len(self.rows) - 1
        first = self.rows[1].sigma
        self.s_begin = (1 + first**2) ** -0.5 if sampler.scaled else self.rows[0].s_next / self.rows[0].ratio
        self.sigmas = tuple(row.sigma for row in self.rows[1:])
        self.slots = max(slots_used(row) for row in self.rows)
        self.stochastic = any(row.std != 0 for row in self.rows)

    def _fill(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        _check_rows(self.rows)
        self.table = np.array([astuple(row) for row in self.rows], dtype=np.float64)
        self.table.setflags(write=False)
        self.digest = hashlib.sha256(self.table.tobytes()).hexdigest()

    def guided(self, guide: Guide) -> "Plan":
        """The same with guidance: guide(sigma) -> guide_F, guide_G and rescale of an evaluation at sigma."""
        plan = copy.copy(self)
        plan._fill([self.rows[0], *(row.then(**guide(row.sigma)) for row in self.rows[1:])])
        return plan

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        shown = ("sigma", "c_skip", "c_out", "h", "std", "c_in", "c_noise")
        lines = [f"{self.sampler}", f"{self.steps} steps, {self.nfe} network evaluations"]
        lines.append(f"{'row':>4} {'op':<8}" + "".join(f"{name:>13}" for name in shown))
        for index, row in enumerate(self.rows):
            lines.append(f"{index:>4} {row.op.name:<8}" + "".join(f"{getattr(row, name):>13.6g}" for name in shown))
        return "\n".join(lines)


def _precondition(rows: Sequence[Row], coefficients: Callable[[torch.Tensor], Coefficients]) -> list[Row]:
    """Fill in what the solver does not decide: c_skip and c_out of each evaluation, c_in and c_noise of the next."""
    sigma = torch.tensor([row.sigma for row in rows[1:]], dtype=torch.float64, device="cpu").to(torch.float32)
    c_skip, c_out, c_in, c_noise = (c.tolist() for c in coefficients(sigma))
    filled = list(rows)
    for k in range(len(rows) - 1):
        s = rows[k + 1].s
        filled[k] = filled[k].then(evaluate=1.0, s_next=s, c_in=c_in[k], c_noise=c_noise[k])
        filled[k + 1] = filled[k + 1].then(c_skip=c_skip[k], c_out=c_out[k])
    return filled


def slots_used(row: Row) -> int:
    """One more than the highest slot a row reads or writes."""
    if row.op is not Op.LINEAR:
        return int(row.op in (Op.PREDICT, Op.CORRECT))
    read = [j for names in (X_FROM, KEEP_FROM) for j, name in enumerate(names[2:]) if getattr(row, name) != 0]
    return max([*read, row.keep_slot, row.store_slot]) + 1


def _check_order(rows: Sequence[Row]) -> None:
    """BEGIN comes first and only there; a CORRECT finishes the PREDICT before it; nothing is evaluated at sigma = 0."""
    ops = [row.op for row in rows]
    if len(ops) < 2 or [index for index, op in enumerate(ops) if op is Op.BEGIN] != [0]:
        raise ValueError(
            f"the rows are {[op.name for op in ops]}; a plan has one BEGIN row, its first, and then others"
        )
    for index, (op, following) in enumerate(zip(ops, [*ops[1:], None], strict=True)):
        if (op is Op.PREDICT) != (following is Op.CORRECT):
            raise ValueError(f"row {index} ({op.name}): every PREDICT is followed by a CORRECT, and no other row is")
        sigma = rows[index].sigma
        if op is not Op.BEGIN and not sigma > 0:
            raise ValueError(
                f"row {index} ({op.name}): sigma is {sigma}; allowed: above 0, as it consumes a network's output"
            )


_NOT_0: Limit = ("a number other than 0", lambda v: v != 0)
_SLOT: Limit = (f"a slot, an integer from 0 to {SLOTS - 1}, or -1", lambda v: v in range(-1, SLOTS))
# Columns whose numbers have other limits than to be finite.
_LIMITS: dict[str, Limit] = {
    "slope_t": _NOT_0,
    "s": _NOT_0,
    "s_next": _NOT_0,
    "std": ("a number from 0", lambda v: v >= 0),
    "rescale": ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    # Below 2^53 a float64 holds every integer.
    "draw": ("the index of a draw, an integer from 0 to 2^53", lambda v: 0 <= v <= 2**53 and v == int(v)),
    "keep_slot": _SLOT,
    "store_slot": _SLOT,
}


def _check_rows(rows: Sequence[Row]) -> None:
    """Every number within its column's limits, every row right in itself, all steps h in one direction.

    That sigma falls from row to row is not asked for: churn and the inversion raise it, Langevin steps repeat it, and a
    LINEAR table may do what its method says, step back up after adding noise or evaluate at the step's end before its
    middle. Where x goes is decided by the coefficients, which are right for any order of the levels.
    """
    if any(row.h > 0 for row in rows) and any(row.h < 0 for row in rows):
        raise ValueError(f"h is {[row.h for row in rows]}; all steps go towards less noise, or (inversion) all to more")
    for index, row in enumerate(rows):
        what = f"row {index} ({row.op.name})"
        _check_columns(what, row)
        _check_row(what, row)


def _check_columns(what: str, row: Row) -> None:
    """Each number by itself."""
    # BEGIN consumes no evaluation and so has no sigma; a LINEAR row's is infinite at zero terminal SNR. A NaN of other
    # rows was refused by `_check_order`.
    unlimited = {"sigma"} if row.op in (Op.BEGIN, Op.LINEAR) else set[str]()
    for name in COLUMNS:
        if not (math.isfinite(getattr(row, name)) or name in unlimited):
            raise ValueError(f"{what}: {name} is {getattr(row, name)}; allowed: a finite number")
    for name, (allowed, ok) in _LIMITS.items():
        if not ok(getattr(row, name)):
            raise ValueError(f"{what}: {name} is {getattr(row, name)}; allowed: {allowed}")


def _check_row(what: str, row: Row) -> None:
    """What a row's numbers must be to each other and to its op."""
    if row.op is Op.CORRECT and not math.isclose(row.w_0 + row.w_1, 1):
        raise ValueError(f"{what}: w_0 + w_1 is {row.w_0 + row.w_1}; allowed: 1, the sum of a corrected step's weights")
    if row.op is Op.PREDICT and (row.std != 0 or row.ratio != 1):
        raise ValueError(f"{what}: std is {row.std}, ratio {row.ratio}; allowed: 0 and 1, as PREDICT adds no noise")
    if row.op is Op.LINEAR and not any(getattr(row, name) for name in X_FROM):
        raise ValueError(f"{what}: every x_from_* is 0; allowed: one or more that are not")
    if row.keep_slot == row.store_slot != -1:
        raise ValueError(f"{what}: keep_slot and store_slot are both {row.keep_slot}; allowed: two slots, or -1")
    if row.guide_G == 0 and row.guide_F != 1:
        raise ValueError(f"{what}: guide_F is {row.guide_F}; allowed: 1 where guide_G is 0")
