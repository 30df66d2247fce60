"""An evaluation being recorded: our own calls, which say so themselves (`native`), and torch's operations, as its
dispatcher sees them."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from .arena import Planned, Storage, plan
from .tape import Elsewhere, Native, Run, Step, Tape, Within, extension, make_call, shown

_BY_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_recording: ContextVar["_Recording | None"] = ContextVar("recording", default=None)


def native(kind: str, tensors: Sequence[Tensor | None], *numbers: Any) -> None:
    """Carry out one of our calls, ``_native.{kind}Call([each tensor's address or 0], *numbers)``, and remember it where
    an evaluation is recorded: the numbers must be the same for any inputs of these shapes."""
    recording = _recording.get()
    if recording is not None and recording.listens:
        recording.native(kind, tensors, numbers)
    call = make_call(kind, [0 if t is None else t.data_ptr() for t in tensors], numbers)
    with shown(kind):
        extension().run_cpu(call, torch.get_num_threads())


@contextmanager
def apart() -> Iterator[None]:
    """What torch does within is not remembered: of weights alone, it comes to the same in every evaluation."""
    recording = _recording.get()
    if recording is None:
        yield
        return
    before, recording.listens = recording.listens, False
    try:
        yield
    finally:
        recording.listens = before


def record(network: nn.Module, inputs: Sequence[Tensor | None]) -> tuple[Any, Tape | None]:
    """What network(*inputs) returns, and what replays it; None where its replays might come to something else."""
    recording = _Recording(inputs)
    token = _recording.set(recording)
    try:
        with recording:
            out = network(*inputs)
            if not isinstance(out, Tensor):
                return out, None
            out = out.clone() if recording.planned(out) else out
    finally:
        _recording.reset(token)
    return out, recording.tape(out)


class _Recording(TorchDispatchMode):
    """Remembers what is called while it is entered; not `complete` if replays of it may come to something else."""

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._values: list[Any] = [None]  # by place: constants, `Planned` tensors, None for what is made in a replay
        self._places: dict[Hashable, int] = {}
        # Of all that is made: where it is planned, or None. What lies in others is constant.
        self._storages: dict[int | None, Storage | None] = {}
        self._alive: list[StorageWeakRef] = []  # while they are held no other storage is taken for these
        self._steps: list[Native | Step] = []
        self.complete = self.listens = True
        for value in inputs:
            if value is not None:
                self.complete &= _storage_of(value) not in self._storages  # or who knows which it is
                self._made(value, None)
                self._places[_key(value)] = len(self._values)
            self._values.append(None)

    def native(self, kind: str, tensors: Sequence[Tensor | None], numbers: tuple[Any, ...]) -> None:
        self._use(*tensors)
        self._steps.append(Native(kind, [self._address(t) for t in tensors], numbers))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, form = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        before = [_key(t) for t in tensors]
        made = func(*args, **kwargs)
        if not self.listens or func.namespace == "profiler":
            return made
        if func._schema.name in _EMPTY:
            self._made(made, Storage(made.untyped_storage().nbytes(), len(self._steps), len(self._steps)))
            return made
        several = isinstance(made, tuple | list)
        results = list(made) if several else [made]
        if before != [_key(t) for t in tensors] or not self._follows(func, args, kwargs, results):
            self.complete = self.listens = False
            return made
        lies_in = {_storage_of(t) for t in tensors}
        viewed = func.is_view and all(_storage_of(t) in lies_in for t in results)  # a "view" may be a copy, of reshape
        if viewed and not any(self._passes(t) for t in tensors):
            return made  # the same in each replay
        self._use(*tensors)
        inside = [*kwargs.values(), *(arg for arg in args if not isinstance(arg, Tensor))]
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(inside)):  # not all are arguments themselves
            call, reads = partial(_called, func, form), [self._place(leaf) for leaf in flat]
        else:
            call, reads = partial(func, **kwargs) if kwargs else func, [self._place(arg) for arg in args]
        for each in results:
            if _storage_of(each) not in self._storages:
                self._made(each, None)
        writes = [self._place(each, made=True) for each in results]
        self._steps.append(Step(call, reads, writes if several else writes[0], []))
        return made

    def _follows(self, func: Any, args: Any, kwargs: Any, results: list[Any]) -> bool:
        """Whether a replay can do what an operation does: it decides nothing by values, makes plain tensors, and writes
        to none that an evaluation finds."""
        if not _BY_VALUES.isdisjoint(func.tags) or not all(map(_is_plain, results)):
            return False
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        written = tree_leaves([given.get(each.name) for each in func._schema.arguments if each.is_write])
        return all(_storage_of(t) in self._storages for t in written if isinstance(t, Tensor))

    def tape(self, out: Tensor) -> Tape | None:
        """What led to ``out``, which must not lie in the arena (`planned`); None if that is not known."""
        end = self._place(out)
        if not self.complete:
            return None
        nbytes = plan(storage for storage in self._storages.values() if storage is not None)
        steps = list(self._merged())
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

    def _merged(self) -> Iterator[Step]:
        for _, together in groupby(self._steps, type):
            ours = []
            for step in together:
                if isinstance(step, Native):
                    ours.append(step)
                else:
                    yield step
            if ours:
                run = Run(ours)
                yield Step(run, [0, *run.places], [], [])

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

    def _address(self, t: Tensor | None) -> Within | Elsewhere | int:
        if t is None:
            return 0
        storage = self._storages.get(_storage_of(t))
        if storage is not None:
            return Within(storage, int(t.storage_offset()) * t.itemsize)
        place = self._place(t)
        return Elsewhere(place) if self._passes(t) else t.data_ptr()

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
        self._values.append(value)
        return len(self._values) - 1


def _key(t: Tensor) -> Hashable:
    strided = t.layout == torch.strided
    return (_storage_of(t), t.dtype, t.storage_offset(), t.shape, t.stride()) if strided else id(t)


def _storage_of(t: Tensor) -> int | None:
    """What its storage is known by; None for oneDNN's own forms of weights."""
    return t.untyped_storage()._cdata if t.layout == torch.strided else None


def _is_plain(made: Any) -> bool:
    return isinstance(made, Tensor) and made.layout == torch.strided and not made.is_conj() and not made.is_neg()


def _called(func: Any, form: TreeSpec, *flat: Any) -> Any:
    args, kwargs = tree_unflatten(flat, form)
    return func(*args, **kwargs)
