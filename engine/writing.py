"""``Writing``: batches encoded and written by another thread while the next ones are drawn."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from .outputs import Output
from .ranges import marked


class Writing:
    """Writes batches to an output, in the order in which they were drawn, on one thread beside the caller's.

    waiting: how many batches may wait to be written, so that memory stays bounded where a disk is slower than a device;
    0 for none: a batch is written before the next is drawn.

    Use it as a context manager. When it is left by an exception (Ctrl-C too) the batch being written is finished, so
    that its files are whole, and those that wait are not begun.
    """

    def __init__(self, output: Output, waiting: int) -> None:
        self._output, self._most = output, waiting
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edm-writing")
        self._waiting: deque[tuple[int, int, Future[None]]] = deque()

    def __enter__(self) -> "Writing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, number: int, images: Tensor) -> Iterator[tuple[int, int]]:
        """Have a batch written, uint8 [B, C, H, W] on the host; yields (number, images) of those that are safe by now.

        Waits while too many are not. Raises what writing one raised.
        """
        self._waiting.append((number, len(images), self._pool.submit(self._write, number, images)))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0][2].done()):
            yield self._safe()

    def rest(self) -> Iterator[tuple[int, int]]:
        """(number, images) of all others, each when it is safe."""
        while self._waiting:
            yield self._safe()

    def _safe(self) -> tuple[int, int]:
        number, count, written = self._waiting.popleft()
        written.result()
        return number, count

    def _write(self, number: int, images: Tensor) -> None:
        with marked("encode"):
            self._output.write(number, images)
