"""A section of the report: what it measures, and what it draws and says from the measurements."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import checkpoints
from ..denoiser import Denoiser
from ..engine import Engine
from ..metrics import Score, Scorer
from ..plan import Sampler
from ..prepare import find_device
from ..samplers import AdaptiveSampler
from ..training.data import FASHION_MNIST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .measurements import Measurements

Verdict = Literal["confirmed", "not confirmed", "different here", "not measured"]


@dataclass(frozen=True)
class Budget:
    """What is measured, and with how much: ``images`` a score, drawn by ``model`` in ``dtype``.

    runs: where networks that are trained to be measured lie; data: the folder of Fashion-MNIST's files. Neither is part
    of the record: they say where things are, and change no measurement.
    """

    model: str = "fashion-mnist"
    images: int = 2000
    dtype: str = "bfloat16"
    batch: int = 100
    device: str = "cpu"
    runs: Path = Path("runs/report")
    data: Path = FASHION_MNIST

    def record(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "images", "dtype", "batch", "device")}

    @property
    def torch_device(self) -> torch.device:
        return find_device(self.device)

    @cached_property
    def denoiser(self) -> Denoiser:
        return checkpoints.load(self.model)

    @cached_property
    def _score(self) -> Scorer:
        return Scorer(self.engine_of(self.denoiser))

    def engine_of(self, denoiser: Denoiser) -> Engine:
        """Of another network too, in the budget's dtype and batches; images are float32."""
        return Engine(denoiser, dtype=getattr(torch, self.dtype), batch_size=self.batch, device=self.device)

    def engine(self, dtype: torch.dtype) -> Engine:
        """The model's, for what is no score: it returns float64, so as not to round what the solver found."""
        return Engine(self.denoiser, dtype=dtype, output_dtype=torch.float64, batch_size=self.batch, device=self.device)

    def score(self, sampler: Sampler | AdaptiveSampler) -> Score:
        return self._score(sampler, self.images)


@dataclass(frozen=True)
class Point:
    """One thing to measure. settings: which, as JSON has it; ``measure`` does it and returns JSON."""

    settings: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """claim: what the paper says. verdict: whether it holds here, by ``rule``. numbers: what was found."""

    claim: str
    rule: str
    verdict: Verdict
    numbers: str


@dataclass(frozen=True)
class Table:
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Drawn:
    """What a section shows. figures: (name of the PNG without its ending, what it shows, the figure)."""

    findings: tuple[Finding, ...]
    figures: tuple[tuple[str, str, "Figure"], ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Section:
    """name: of its file and on the command line. points: all there is to measure, the most telling first, so that the
    figure is worth looking at before all of it has been measured. draw: from any part of these points."""

    name: str
    title: str
    source: str
    points: Callable[[Budget], Iterator[Point]]
    draw: Callable[["Measurements"], Drawn]
    notes: tuple[str, ...] = field(default=())


def not_measured(claim: str, rule: str, why: str) -> Finding:
    return Finding(claim, rule, "not measured", why)


def score_point(budget: Budget, sampler: Sampler | AdaptiveSampler, **settings: Any) -> Point:
    """A sampler's score under these settings."""
    return Point(settings, lambda: budget.score(sampler).as_json())
