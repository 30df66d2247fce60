"""The captured loop: batches of one signature share buffers and a graph; the graphs that were used last are kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from .. import loop
from ..allowed import is_integer, require
from ..backends import Backend
from ..batch import Buffers, Inputs
from ..preview import denoised
from ..ranges import marked
from ..run import Run, Watch
from ..state import State
from ..warn import warn_caller
from .blame import CaptureError, require_capturable
from .capture import CAPTURES, Capture, Graph, Work

Mode = Literal["auto", "loop", "step", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)
# Evaluations in one graph, where nobody asked for one: a graph's nodes cost memory, and the step graph's do not add up.
LONGEST_LOOP = 128
Read = TypeVar("Read")


@dataclass(frozen=True)
class CapturedLoop:
    """What one signature's batches run through. kind: "loop" or "step"; batch: its samples; graphs: how many there are
    (a step graph with guidance and one without, say); seconds of capturing; nbytes, of all; batches: drawn.
    """

    kind: str
    batch: int
    graphs: int
    seconds: float
    nbytes: int
    batches: int


@dataclass
class _Work:
    """Work that runs as it is the first time, which warms up what it calls, and is then replayed from a graph.

    eager_first: capture it when it comes the second time, not in the first already.
    """

    work: Work
    eager_first: bool
    warm: bool = False
    graph: Graph | None = None

    def __call__(self, capture: Capture, check: Callable[[], None]) -> None:
        if not self.warm:
            capture.warm_up(self.work)
            self.warm = True
            if not self.eager_first:
                self._capture(capture, check)
            return
        graph = self._capture(capture, check)
        with marked("replay"):
            graph.replay()

    def _capture(self, capture: Capture, check: Callable[[], None]) -> Graph:
        if self.graph is None:
            check()
            with marked("capture"):
                self.graph = capture.capture(self.work)
        return self.graph


@dataclass
class _Entry:
    """A signature's buffers, its works by what tells them apart, and how many batches they drew.

    preview: where step graphs leave D for who looks on, float32 like x.
    """

    kind: str
    buffers: Buffers
    preview: Tensor | None
    works: dict[Hashable, _Work] = field(default_factory=dict)
    batches: int = 0

    def graphs(self) -> Iterator[Graph]:
        return (work.graph for work in self.works.values() if work.graph is not None)

    @property
    def nbytes(self) -> int:
        own = self.buffers.nbytes + (0 if self.preview is None else self.preview.nbytes)
        return own + sum(graph.nbytes for graph in self.graphs())


class Captured:
    """Draws batches through graphs of one engine; several threads may call it, one at a time is served.

    mode: see `engine.Engine`. budget: bytes of buffers and graphs, of which those used last are kept; None for the
    device's own (`Capture.budget`). One entry is kept whatever it takes.
    """

    def __init__(self, capture: Capture, mode: Mode, budget: int | None) -> None:
        self._capture, self._mode = capture, mode
        self._budget = capture.budget() if budget is None else budget
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.RLock()
        self._drawing = self._refused = False

    def draw(self, run: Run, inputs: Inputs, watch: Watch, read: Callable[[State], Read]) -> Read:
        """What ``read`` copies out of the batch's final state, whose buffers are the next batch's afterwards."""
        with self._lock:
            if self._drawing:
                raise RuntimeError("callback draws with the engine that called it; allowed: another engine")
            self._drawing = True
            try:
                with self._capture.turn():
                    entry = self._entry(run, inputs, self._kind(run, watch))
                    entry.buffers.load(inputs)
                    (self._loop if entry.kind == "loop" else self._steps)(entry, run, inputs, watch)
                    entry.batches += 1
                    return read(entry.buffers.state)
            finally:
                self._drawing = False
                self._evict()

    def loops(self) -> tuple[CapturedLoop, ...]:
        """What has been captured and is kept, that used last at the end."""
        with self._lock:
            return tuple(
                CapturedLoop(
                    entry.kind,
                    len(entry.buffers.state.x),
                    len(list(entry.graphs())),
                    sum(graph.seconds for graph in entry.graphs()),
                    entry.nbytes,
                    entry.batches,
                )
                for entry in self._entries.values()
            )

    def clear(self) -> None:
        """Let go of all graphs and buffers; they are made again when they are needed."""
        with self._lock:
            self._entries.clear()

    def _kind(self, run: Run, watch: Watch) -> str:
        """Who looks on sees single steps; a loop of many evaluations, too, is drawn step by step."""
        long = self._mode == "auto" and run.plan.nfe > LONGEST_LOOP
        return "step" if self._mode == "step" or watch.callback is not None or long else "loop"

    def _entry(self, run: Run, inputs: Inputs, kind: str) -> _Entry:
        rows = inputs.guided if kind == "loop" else None  # a loop holds which rows are guided, and how many there are
        key = (kind, rows, run.baked, inputs.signature)
        if key not in self._entries:
            # Not tensors of inference mode, where this call may be: others must be able to write to them.
            with torch.inference_mode(False), self._capture.lasting():
                self._entries[key] = _Entry(kind, Buffers.lasting(inputs), _preview(inputs) if kind == "step" else None)
        self._entries.move_to_end(key)
        return self._entries[key]

    def _evict(self) -> None:
        """The oldest entries, while all take more than the budget. The pool's memory goes back when none is left."""
        while len(self._entries) > 1 and sum(entry.nbytes for entry in self._entries.values()) > self._budget:
            self._entries.popitem(last=False)

    def _loop(self, entry: _Entry, run: Run, inputs: Inputs, watch: Watch) -> None:
        buffers, backend = entry.buffers, run.backend
        guided, network = inputs.guided, run.network(buffers)

        def make() -> Work:
            return lambda: loop.run(network, buffers.state, guided, backend)

        self._do(entry, "loop", make, run, set(guided[1:]))
        watch.tick(run.plan.nfe)

    def _steps(self, entry: _Entry, run: Run, inputs: Inputs, watch: Watch) -> None:
        """BEGIN, then one graph for every evaluation, in which row 0 is whichever row base_row has come to."""
        loop.begin(entry.buffers.state, run.backend)
        for k in range(run.plan.nfe):
            guided, looks = inputs.guided[k + 1], watch.looks_at(k, run.plan.nfe)
            self._do(entry, ("step", guided, looks), partial(_step, entry, run, guided, looks), run, {guided})
            watch.tick(1)
            if looks and entry.preview is not None:
                watch.show(run, k, entry.preview)

    def _do(self, entry: _Entry, name: Hashable, make: Callable[[], Work], run: Run, guided: set[bool]) -> None:
        """The entry's work of that name, which ``make`` makes once, by its graph if it can be captured."""
        if name not in entry.works:
            entry.works[name] = _Work(make(), eager_first=self._mode == "auto")
        mine = entry.works[name]
        if self._refused:
            mine.work()
            return
        state, network = entry.buffers.state, run.network(entry.buffers)

        def check() -> None:
            for each in guided:
                require_capturable(lambda each=each: network(state, 0, each), run.networks)  # type: ignore[misc]

        try:
            mine(self._capture, check)
        except CaptureError as error:
            if self._mode != "auto":
                raise
            warn_caller(f"{error}; this engine runs without graphs")
            self._refused = True
            mine.work()  # warm already: it is captured when it comes the second time


def _step(entry: _Entry, run: Run, guided: bool, looks: bool) -> Work:
    # Not the entry, which holds this work: in a circle its memory would wait for the garbage collector.
    state, network, preview = entry.buffers.state, run.network(entry.buffers), entry.preview

    def look(F: Tensor, G: Tensor | None, state: State, k: int) -> None:
        assert preview is not None
        preview.copy_(denoised(F, G, state, k))

    def step() -> None:
        loop.step(network, state, 0, guided, run.backend, look if looks else None)
        state.base_row.add_(1)

    return step


def _preview(inputs: Inputs) -> Tensor:
    return torch.empty(len(inputs.base_row), *inputs.noise.shape, dtype=torch.float32, device=inputs.spec.device)


def open_captured(mode: str, device: torch.device, backend: Backend, budget: int | None) -> Captured | None:
    """How an engine's batches are captured; None where they are not. Raises ValueError where ``mode`` names what cannot
    be, with the reason."""
    if mode not in MODES:
        raise ValueError(f"graph is {mode!r}; allowed: {', '.join(MODES)}")
    whole = budget is None or is_integer(budget, 0)
    require("graph_memory", budget, whole, "a number of bytes, or None")
    if budget is not None and mode == "off":
        raise ValueError(f"graph_memory is {budget}; allowed: None, with graph='off'")
    reasons = []
    if device.type not in CAPTURES:
        reasons.append(f"the device is {device}, and CUDA graphs need a CUDA device")
    if not backend.capturable:
        reasons.append(f"the {backend.name} backend reads values on the host")
    if mode == "off" or (reasons and mode == "auto"):
        return None
    if reasons:
        raise ValueError(f"graph is {mode!r}; allowed here: 'auto', 'off': {'; '.join(reasons)}")
    return Captured(CAPTURES[device.type](device), mode, budget)
