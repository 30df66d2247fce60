"""Evaluations of a network on a CPU, remembered: what they call, without the Python that decides on it.

To call one of our operations from Python takes as long as the operation itself where network and batch are small;
modules, layouts, shapes and checks come to the same for inputs of the same shapes, as they do for a CUDA graph. So the
second evaluation of a shape is recorded, our own calls (`native`) and torch's operations as its dispatcher sees them,
and those that follow are replayed: calls of ours that follow each other as one (`_native.Program`), what they fill at
planned places of one memory (`arena`), views of that made once. The same operations in the same order give the same
bits.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module
from torch.utils._python_dispatch import TorchDispatchMode, is_in_torch_dispatch_mode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from .arena import Arena, Planned, Storage, plan

Call = Callable[..., Any]
_KEPT = 2  # shapes of a network's inputs: a job's batches, and its last; oneDNN's weights are packed for each
_EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_recording: ContextVar["_Recording | None"] = ContextVar("recording", default=None)


@cache
def extension():  # type: ignore[no-untyped-def]  # a module; its types are in engine/_native.pyi
    """Imported once: to import it in every call took 2% of a small network's time at batch 1."""
    from engine import _native

    return _native


def native(kind: str, tensors: Sequence[Tensor | None], *numbers: Any) -> None:
    """Carry out one of our calls, ``_native.{kind}Call([each tensor's address or 0], *numbers)``, and remember it where
    an evaluation is recorded: the numbers must be the same for any inputs of these shapes."""
    recording = _recording.get()
    if recording is not None:
        recording.native(kind, tensors, numbers)
    call = _make_call(kind, [0 if t is None else t.data_ptr() for t in tensors], numbers)
    with _shown(kind):
        extension().run_cpu(call, torch.get_num_threads())


def _make_call(kind: str, addresses: Sequence[int], numbers: Sequence[Any]) -> Any:
    return getattr(extension(), f"{kind}Call")(addresses, *numbers)


def _shown(kind: str) -> AbstractContextManager[object]:
    """Makes a call of ours an event of torch's profiler, where that is on; otherwise costs 0.2 us."""
    return torch.profiler.record_function(f"edm::{kind}") if _profiled() else nullcontext()


def _profiled() -> bool:
    return torch.autograd.profiler._is_profiler_enabled


class _Within(NamedTuple):
    """An address in the arena."""

    storage: Storage
    start: int


class _Elsewhere(NamedTuple):
    """The address of a tensor at this place, another in each replay."""

    place: int


class _Native(NamedTuple):
    """One of our calls, recorded; an int is an address that stays."""

    kind: str
    addresses: list[_Within | _Elsewhere | int]
    numbers: tuple[Any, ...]


class _Step(NamedTuple):
    """call(values at ``reads``), whose results go to ``writes``; then nobody needs what is at ``drops``."""

    call: Call
    reads: list[int]
    writes: int | list[int]
    drops: list[int]


class _Run:
    """Calls of ours that follow each other: run(the arena's address, the tensors at ``places``)."""

    def __init__(self, recorded: Sequence[_Native]) -> None:
        self.places: list[int] = []
        self._program, self._kinds = extension().Program(), [call.kind for call in recorded]
        for call in recorded:
            addresses, bases = zip(*map(self._counted, call.addresses), strict=True)
            self._program.add(_make_call(call.kind, addresses, call.numbers), bases)

    def _counted(self, address: _Within | _Elsewhere | int) -> tuple[int, int]:
        """What is added to a base, and its number: 0 is nothing, 1 the arena, then come the tensors."""
        if isinstance(address, int):
            return address, 0
        if isinstance(address, _Within):
            return address.storage.offset + address.start, 1
        if address.place not in self.places:
            self.places.append(address.place)
        return 0, 2 + self.places.index(address.place)

    def __call__(self, arena: int, *elsewhere: Tensor) -> tuple[()]:
        bases, threads = [0, arena, *(t.data_ptr() for t in elsewhere)], torch.get_num_threads()
        if not _profiled():
            self._program.run(bases, 0, len(self._kinds), threads)
            return ()
        for i, kind in enumerate(self._kinds):
            with _shown(kind):
                self._program.run(bases, i, i + 1, threads)
        return ()


class Tape:
    """An evaluation that was recorded. Places of values: the arena's address, the inputs, then what came up."""

    def __init__(self, steps: list[_Step], values: list[Any], out: int, nbytes: int) -> None:
        self._steps, self._values, self._out, self._nbytes = steps, values, out, nbytes
        self._arenas: list[Arena] = []  # as many as there were threads at once
        self._idle: list[Arena] = []

    @property
    def nbytes(self) -> int:
        """Of its arenas, which it keeps."""
        return self._nbytes * len(self._arenas)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The evaluation of other inputs of the same shapes."""
        try:
            arena = self._idle.pop()
        except IndexError:
            arena = Arena(self._nbytes, self._values)
            self._arenas.append(arena)
        try:
            return self._replay([arena.address, *inputs, *arena.values[1 + len(inputs) :]])
        finally:
            self._idle.append(arena)

    def _replay(self, values: list[Any]) -> Tensor:
        for call, reads, writes, drops in self._steps:
            made = call(*[values[place] for place in reads])
            if isinstance(writes, int):
                values[writes] = made
            else:
                for place, each in zip(writes, made, strict=True):
                    values[place] = each
            for place in drops:
                values[place] = None
        out: Tensor = values[self._out]
        return out


class _Recording(TorchDispatchMode):
    """Remembers what is called while it is entered."""

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._values: list[Any] = [None]  # by place: constants, `Planned` tensors, None for what is made in a replay
        self._places: dict[Hashable, int] = {}
        self._storages: dict[
            int | None, Storage | None
        ] = {}  # of what is made: planned, or None; all others hold constants
        self._alive: list[StorageWeakRef] = []  # while they are held no other storage is taken for these
        self._steps: list[_Native | _Step] = []
        self.complete = True
        for value in inputs:
            if value is not None:
                self.complete &= _storage_of(value) not in self._storages  # or who knows which it is
                self._made(value, None)
                self._places[_key(value)] = len(self._values)
            self._values.append(None)

    def native(self, kind: str, tensors: Sequence[Tensor | None], numbers: tuple[Any, ...]) -> None:
        self._use(*tensors)
        self._steps.append(_Native(kind, [self._address(t) for t in tensors], numbers))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        flat, form = tree_flatten((args, kwargs or {}))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        several = isinstance(made, tuple | list)
        results = list(made) if several else [made]
        if func._schema.name in _EMPTY:
            self._made(made, Storage(made.untyped_storage().nbytes(), len(self._steps), len(self._steps)))
            return made
        lasting_view = func.is_view and not any(self._passes(t) for t in tensors)
        packed_weight = isinstance(made, Tensor) and made.layout != torch.strided  # oneDNN's
        if lasting_view or packed_weight or func.namespace == "profiler":
            return made
        self._use(*tensors)
        apart = [*(kwargs or {}).values(), *(arg for arg in args if not isinstance(arg, Tensor))]
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(apart)):  # not all are arguments themselves
            call, reads = partial(_called, func, form), [self._place(leaf) for leaf in flat]
        else:
            call, reads = partial(func, **kwargs) if kwargs else func, [self._place(arg) for arg in args]
        for each in results:
            if isinstance(each, Tensor) and _storage_of(each) not in self._storages:
                self._made(each, None)
        writes = [self._place(each, made=True) for each in results]
        self._steps.append(_Step(call, reads, writes if several else writes[0], []))
        return made

    def tape(self, out: Tensor) -> Tape:
        """What led to ``out``, which must not lie in the arena (`planned`)."""
        nbytes = plan(storage for storage in self._storages.values() if storage is not None)
        end, steps = self._place(out), list(self._merged())
        last: dict[int, int] = {}
        for index, (_, reads, writes, _) in enumerate(steps):
            last.update(dict.fromkeys([*reads, *([writes] if isinstance(writes, int) else writes)], index))
        for place, index in last.items():
            if self._values[place] is None and place not in (0, end):
                steps[index].drops.append(place)
        values = [None if isinstance(v, Planned) and place not in last else v for place, v in enumerate(self._values)]
        return Tape(steps, values, end, nbytes)

    def planned(self, t: Tensor) -> bool:
        """Whether it lies in the arena, where the next replay writes."""
        return self._storages.get(_storage_of(t)) is not None

    def _merged(self) -> Iterator[_Step]:
        for _, together in groupby(self._steps, type):
            ours = []
            for step in together:
                if isinstance(step, _Native):
                    ours.append(step)
                else:
                    yield step
            if ours:
                run = _Run(ours)
                yield _Step(run, [0, *run.places], [], [])

    def _made(self, t: Tensor, storage: Storage | None) -> None:
        self._storages[_storage_of(t)] = storage
        self._alive.append(StorageWeakRef(t.untyped_storage()))

    def _passes(self, t: Tensor) -> bool:
        """Whether it lies in memory that each replay gets anew."""
        return self._storages.get(_storage_of(t), t) is None

    def _use(self, *tensors: Tensor | None) -> None:
        for t in tensors:
            storage = None if t is None else self._storages.get(_storage_of(t))
            if storage is not None:
                storage.last = len(self._steps)

    def _address(self, t: Tensor | None) -> _Within | _Elsewhere | int:
        if t is None:
            return 0
        storage = self._storages.get(_storage_of(t))
        if storage is not None:
            return _Within(storage, int(t.storage_offset()) * t.itemsize)
        place = self._place(t)
        return _Elsewhere(place) if self._passes(t) else t.data_ptr()

    def _place(self, value: Any, made: bool = False) -> int:
        """Where a value is kept, a new place if it has none; of what is no tensor each occurrence has its own."""
        key = _key(value) if isinstance(value, Tensor) else None
        place = self._places.get(key) if key is not None else None
        if place is not None:
            return place
        if key is not None:
            self._places[key] = len(self._values)
            if self._passes(value):
                self.complete &= made  # a view that torch's dispatcher was not told of
                value = None
            else:
                storage = self._storages.get(_storage_of(value))
                value = value if storage is None else Planned.like(value, storage)
        self._values.append(None if made and key is None else value)
        return len(self._values) - 1


def _key(t: Tensor) -> Hashable:
    strided = t.layout == torch.strided
    return (_storage_of(t), t.dtype, t.storage_offset(), t.shape, t.stride()) if strided else id(t)


def _storage_of(t: Tensor) -> int | None:
    """What its storage is known by; None for oneDNN's own forms of weights."""
    return t.untyped_storage()._cdata if t.layout == torch.strided else None


def _called(func: Any, form: TreeSpec, *flat: Any) -> Any:
    args, kwargs = tree_unflatten(flat, form)
    return func(*args, **kwargs)


class Remembered:
    """A network's evaluations, replayed from the third of a shape on. The network must be in eval mode, decide nothing
    by values, and keep its weights where they are.

    With gradients, and while somebody listens to its modules (forward hooks) or to torch's operations (a dispatch
    mode), it is called as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        hooks = [hooks for m in network.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks = [module._global_forward_hooks, module._global_forward_pre_hooks, *hooks]
        self._tapes: OrderedDict[Hashable, Tape | nn.Module | None] = OrderedDict()

    def tape_for(self, *inputs: Tensor | None) -> Tape | None:
        """What replays inputs of these shapes, if anything does yet."""
        found = self._tapes.get(_shapes(inputs))
        return found if isinstance(found, Tape) else None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or any(self._hooks) or is_in_torch_dispatch_mode():
            out: Tensor = self._network(*inputs)
            return out
        key = _shapes(inputs)
        tape = self._tapes.get(key)
        if tape is not None:
            out = tape(*inputs)
            return out
        if key in self._tapes:
            return self._record(key, inputs)
        self._tapes[key] = None
        for oldest in list(self._tapes)[:-_KEPT]:  # a copy: other threads may be at it too
            self._tapes.pop(oldest, None)
        out = self._network(*inputs)
        return out

    def _record(self, key: Hashable, inputs: Sequence[Tensor | None]) -> Tensor:
        recording = _Recording(inputs)
        token = _recording.set(recording)
        try:
            with recording:
                out: Tensor = self._network(*inputs)
                out = out.clone() if recording.planned(out) else out
        finally:
            _recording.reset(token)
        self._tapes[key] = recording.tape(out) if recording.complete else self._network
        return out


def _shapes(inputs: Sequence[Tensor | None]) -> Hashable:
    return tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in inputs)
