"""How work on a device is captured: `CudaCapture`, and the table of devices that know how."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import torch

from .blame import CaptureError

Work = Callable[[], object]
# torch holds one capture at a time in a process to be safe, whichever engines are capturing.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Graph:
    """Captured work. replay: does it; nbytes: what its capture took of the device; seconds: how long that took."""

    replay: Callable[[], object]
    nbytes: int = 0
    seconds: float = 0.0


class Capture(Protocol):
    """Of one engine. Work captured by it shares memory, and so must run one after the other, which `turn` sees to."""

    def turn(self) -> AbstractContextManager[None]:
        """Inside, work runs after all that other turns have begun."""

    def lasting(self) -> AbstractContextManager[None]:
        """Memory allocated inside, in a turn, is given to nobody else before all turns that may use it have ended."""

    def warm_up(self, work: Work) -> None:
        """Do the work as a capture would, on whichever stream that takes."""

    def capture(self, work: Work) -> Graph:
        """Without doing it. Raises `CaptureError` where that is not to be had."""

    def budget(self) -> int:
        """Bytes that graphs may take where nobody says how many."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector might destroy another graph, or unload a kernel, which CUDA refuses during a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaCapture:
    """CUDA graphs of one engine: a side stream and a memory pool that all its graphs share.

    Graphs that share a pool may overwrite each other's memory. That is safe here: what they read and leave lies in
    buffers that were allocated outside, and they run one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Of high priority: torch hands out 32 streams of each priority in turn, and users' own are of the other.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._pool: Any = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._failed: list[torch.cuda.CUDAGraph] = []  # torch's allocator of pinned memory goes on asking them
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work queued inside waits, on the device, for that of the turn before, whichever stream it ran on."""
        stream = torch.cuda.current_stream(self.device)
        if self._last is not None:
            stream.wait_event(self._last)
        try:
            yield
        finally:
            self._last = torch.cuda.Event()
            self._last.record(stream)
            self._stream.wait_event(self._last)  # to which what `lasting` allocated goes back

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """On the side stream, which waits for every turn."""
        with self._beside():
            yield

    def warm_up(self, work: Work) -> None:
        """On the side stream: what libraries allocate for a stream, they allocate before the capture."""
        with self._beside():
            work()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def capture(self, work: Work) -> Graph:
        """Other threads' calls may go on meanwhile, but for random numbers from torch's default CUDA generator, which
        torch refuses them during a capture, and for `torch.cuda.synchronize`, by which some drivers let a capture fail:
        so it is tried twice. This thread waits for the device once."""
        with _ONE_AT_A_TIME, torch.cuda.device(self.device), _no_collection():
            started = time.perf_counter()
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(self.device)[0]
            try:
                graph = self._captured(work)
            except CaptureError:
                graph = self._captured(work)
            self._graphs.add(graph)
            taken = max(0, free - torch.cuda.mem_get_info(self.device)[0])
            return Graph(graph.replay, taken, time.perf_counter() - started)

    def _captured(self, work: Work) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self.device)
        if self._pool is None or not self._graphs:  # torch gives a pool up with its last graph
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._failed.append(graph)
            self._clean_up()
            if "out of memory" in str(error):  # of CUDA itself, when what was captured becomes a graph
                raise torch.OutOfMemoryError(str(error)) from error
            raise CaptureError(f"the loop could not be captured in a CUDA graph: {error}") from error
        finally:
            torch.cuda.set_stream(current)  # torch leaves the side stream current when a capture fails
        return graph

    def _clean_up(self) -> None:
        """What torch leaves behind when a capture fails: an allocator and a generator that take it for under way."""
        index, pool, self._pool = torch.cuda.current_device(), self._pool, None
        with suppress(AttributeError, RuntimeError):  # of another version; not begun, or ended by torch
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)  # only then: else live graphs or the failed one hold it
        with suppress(RuntimeError):  # a capture that succeeds gives the default generator back
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, None, self._stream, capture_error_mode="thread_local"):
                torch.zeros(1, device=self.device)

    def budget(self) -> int:
        """Half of the device's memory."""
        return torch.cuda.get_device_properties(self.device).total_memory // 2


# By kind of device. A test puts one here that remembers work and does it again.
CAPTURES: dict[str, Callable[[torch.device], Capture]] = {"cuda": CudaCapture}
