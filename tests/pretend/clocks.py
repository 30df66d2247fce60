"""What runs after what on the pretended device, and who may touch which memory.

Each stream, and the host, has a vector clock: of every stream, the last work that is known to be done when its own next
work begins. Two accesses to the same memory, one of them a write, must be ordered by them; otherwise it is a `Race`.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

Clock = dict[int, int]
HOST = -1  # what stands for a stream


class Race(RuntimeError):
    """Two accesses that nothing orders."""


def join(mine: Clock, other: Clock) -> None:
    """``mine`` comes after ``other``, too."""
    for stream, time in other.items():
        mine[stream] = max(mine.get(stream, 0), time)


@dataclass(eq=False)
class Memory:
    """One allocation of a stream: who wrote it last, who has read it since, and for whom record_stream kept it."""

    device: Device
    stream: int
    start: int
    size: int
    write: tuple[int, int] | None = None
    reads: dict[int, int] = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)

    def access(self, stream: int, clock: Clock, writes: bool) -> None:
        """Raises `Race`."""
        verb = "writes" if writes else "reads"
        if self.write is not None and clock.get(self.write[0], 0) < self.write[1]:
            raise Race(f"stream {stream} {verb} what stream {self.write[0]} may still write")
        if not writes:
            self.reads[stream] = clock[stream]
            return
        for other, time in self.reads.items():
            if clock.get(other, 0) < time:
                raise Race(f"stream {stream} writes what stream {other} may still read")
        self.write, self.reads = (stream, clock[stream]), {}

    def __del__(self) -> None:
        """torch gives it to the next who asks on its stream; it keeps pinned memory until the device is done."""
        if self.stream == HOST:
            return
        users = dict(self.reads)
        if self.write is not None:
            users[self.write[0]] = self.write[1]
        clock = dict(self.device.clock(self.stream))
        join(clock, self.device.clocks[HOST])
        for user, time in users.items():
            if user != self.stream and user not in self.recorded and clock.get(user, 0) < time:
                self.device.errors.append(f"memory of stream {self.stream} was let go while stream {user} may use it")


@dataclass
class Recorded:
    """One call of a graph: where its results go, what it touches and which of that it writes."""

    call: Callable[[], Any]
    results: list[Tensor]
    touched: list[Any]
    written: list[Any]


class Device:
    """The one device. errors: what was found where nothing can be raised."""

    it: ClassVar[Device]

    def __init__(self) -> None:
        self.clocks: dict[int, Clock] = {HOST: {HOST: 1}}
        self.numbers = itertools.count(1)
        self.local, self.lock = threading.local(), threading.RLock()
        self.memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
        self.pinned: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
        self.errors: list[str] = []
        self.sync_mode = 0

    @property
    def capturing(self) -> list[Recorded] | None:
        """What this thread's capture holds so far."""
        return getattr(self.local, "recording", None)

    @property
    def stream(self) -> int:
        """This thread's current one."""
        return getattr(self.local, "stream", 0)

    def clock(self, stream: int) -> Clock:
        return self.clocks.setdefault(stream, {stream: 0})

    def access(self, touched: Iterable[Any], written: Iterable[Any]) -> None:
        """Work on the current stream, after all that the host has seen. Raises `Race`."""
        writes = {id(each) for each in written}
        with self.lock:
            clock = self.clock(self.stream)
            join(clock, self.clocks[HOST])
            clock[self.stream] += 1
            for each in touched:
                memory = each if isinstance(each, Memory) else self.behind(each)
                if memory is not None and memory.size:
                    memory.access(self.stream, clock, id(each) in writes)

    def behind(self, t: Any) -> Memory | None:
        """The memory of a tensor on the device, or of a pinned one."""
        if not isinstance(t, Tensor):
            return None
        return getattr(t, "memory", None) or self.pinned.get(t.untyped_storage().data_ptr())

    def memory_of(self, host: Tensor) -> Memory:
        """What holds a tensor that the device has made; its views share it."""
        storage = host.untyped_storage()
        found = self.memories.get(storage.data_ptr())
        if found is None or not storage.nbytes():
            found = Memory(self, self.stream, storage.data_ptr(), storage.nbytes())
            if self.capturing is None:
                found.write = (self.stream, self.clock(self.stream)[self.stream])
            self.memories[storage.data_ptr()] = found
        return found

    def at(self, addresses: Iterable[int]) -> list[Memory]:
        """What lies there."""
        alive, found = self._alive(), []
        for address in filter(None, addresses):
            there = [m for m in alive if m.start <= address < m.start + m.size]
            if not there:
                raise RuntimeError(f"CUDA error: an illegal memory access, {address:#x}")
            found += there
        return found

    def pin(self, t: Tensor) -> Tensor:
        """A copy in pinned memory."""
        made = t.clone()
        start = made.untyped_storage().data_ptr()
        made.pinned_memory = Memory(self, HOST, start, made.untyped_storage().nbytes())
        self.pinned[start] = made.pinned_memory
        return made

    def is_pinned(self, t: Tensor) -> bool:
        return t.untyped_storage().data_ptr() in self.pinned

    def host_access(self, tensors: Iterable[Tensor], writes: bool) -> None:
        """Of pinned memory, only what the device is done with. Raises `Race`."""
        if self.pinned:
            for memory in (self.behind(t) for t in tensors if t.device.type == "cpu" and type(t) is Tensor):
                if memory is not None:
                    memory.access(HOST, self.clocks[HOST], writes)

    def require_waiting(self, what: str) -> None:
        """Raises RuntimeError where the host must not wait."""
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self.sync_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")

    def wait_for(self, clock: Clock, what: str) -> None:
        """The host waits. Raises RuntimeError where it must not."""
        self.require_waiting(what)
        join(self.clocks[HOST], clock)

    def allocated(self) -> int:
        return sum(memory.size for memory in self._alive())

    def _alive(self) -> list[Memory]:
        return [memory for memory in (each() for each in self.memories.valuerefs()) if memory is not None]
