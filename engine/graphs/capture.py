"""How work on a device is captured: `CudaCapture`, and the table of devices that know how."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

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

    def warm_up(self, work: Work) -> None:
        """Do the work as a capture would, on whichever stream that takes."""

    def capture(self, work: Work) -> Graph:
        """Without doing it. Raises `CaptureError` where that is not to be had."""

    def forget(self) -> None:
        """All graphs are gone, and with them the memory they shared."""

    def budget(self) -> int:
        """Bytes that graphs may take where nobody says how many."""


class CudaCapture:
    """CUDA graphs of one engine: a side stream and a memory pool that all its graphs share.

    Graphs that share a pool may overwrite each other's memory. That is safe here: what they read and leave lies in
    buffers that were allocated outside, and they run one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
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

    def warm_up(self, work: Work) -> None:
        """On the side stream: what libraries allocate for a stream, they allocate before the capture."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def capture(self, work: Work) -> Graph:
        """Calls of other threads may go on meanwhile; this thread waits for the device once."""
        with _ONE_AT_A_TIME, torch.cuda.device(self.device):
            started, current = time.perf_counter(), torch.cuda.current_stream(self.device)
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info(self.device)[0]
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    work()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise CaptureError(f"the loop could not be captured in a CUDA graph: {error}") from error
            finally:
                torch.cuda.set_stream(current)  # torch leaves the side stream current when a capture fails
            taken = max(0, free - torch.cuda.mem_get_info(self.device)[0])
            return Graph(graph.replay, taken, time.perf_counter() - started)

    def forget(self) -> None:
        """The next capture begins a pool of its own."""
        self._pool = None

    def budget(self) -> int:
        """Half of the device's memory."""
        return torch.cuda.get_device_properties(self.device).total_memory // 2


# By kind of device. A test puts one here that remembers work and does it again.
CAPTURES: dict[str, Callable[[torch.device], Capture]] = {"cuda": CudaCapture}
