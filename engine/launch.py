"""``Launcher``: batches of one engine put on their way, by graphs where it has them, and what comes of them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .allowed import is_integer
from .graphs import Captured
from .job import Job
from .ranges import marked
from .run import Run, Watch
from .state import State
from .transfer import Arriving, CopyOut
from .warn import warn_caller

Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Launched:
    """A batch that is drawn, or on a device will be: its images, and for each the row at which it first was not finite,
    int64 [N], or -1."""

    run: Run
    job: Job
    images: Arriving
    bad_row: Arriving


def buckets_of(given: Sequence[int] | None, batch_size: int, device: torch.device) -> tuple[int, ...]:
    """The sizes in which batches are evaluated, ascending; a batch of another size is padded to the next.

    given: the user's own; () for no padding; None for powers of two on a CUDA device, where a size costs a capture, and
    () on a CPU. Raises ValueError for sizes that are none.
    """
    if given is None:
        given = [2**k for k in range(batch_size.bit_length())] if device.type == "cuda" else []
    sizes = list(given) if isinstance(given, Sequence) else [0]
    if not all(is_integer(size, 1, batch_size) for size in sizes):
        raise ValueError(f"buckets is {given!r}; allowed: integers from 1 to batch_size = {batch_size}, or None")
    return tuple(sorted({*map(int, sizes), batch_size})) if sizes else ()


class Launcher:
    """Puts jobs of up to ``largest`` samples on their way as one batch each, larger ones as several.

    Where a device has too little memory for a batch, ``largest`` is halved, once; a warning says so.
    """

    def __init__(self, device: torch.device, largest: int, buckets: tuple[int, ...], captured: Captured | None) -> None:
        self.largest, self.buckets, self.captured = largest, buckets, captured
        self._shrunk, self._lock = False, threading.Lock()
        self._copy_out = CopyOut(device)
        # On a device a batch is queued before the one before it is waited for; what would be gained on a CPU?
        self.ahead = int(device.type == "cuda" or captured is not None)

    def launch(self, run: Run, job: Job, watch: Watch, finish: Finish, to_host: bool = False) -> Launched:
        """Draw a job, or queue it. finish: makes images, a new tensor, of the final x [N, C, *spatial]; to_host: these
        are to be copied to the host."""
        while True:
            largest = self.largest
            crowded = self.captured is not None and self.captured.loops() != ()
            try:
                return self._all(run, job, watch, finish, to_host)
            except torch.OutOfMemoryError:
                attempted = self._size(min(largest, len(job.positions)))
                if not crowded and (attempted == 1 or (self._shrunk and attempted <= self.largest)):
                    raise
            # Outside of the handler, whose traceback holds the tensors of the attempt.
            self._make_room(run)
            if not crowded:  # by graphs of other batches, say, which are gone now
                self._shrink(run, attempted)

    def _make_room(self, run: Run) -> None:
        if self.captured is not None:
            self.captured.clear()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shrink(self, run: Run, attempted: int) -> None:
        """Draw half as many at a time from now on, unless another thread has come to that already."""
        with self._lock:
            if self.largest < attempted:
                return
            self._shrunk, self.largest = True, attempted // 2
        warn_caller(
            f"batches of {attempted} do not fit into the memory of {run.device}; drawing {attempted // 2} at a time, "
            "which may change the network's last bits (README, Seeds)"
        )

    def _size(self, count: int) -> int:
        """The size, padding included, in which a batch of ``count`` samples is evaluated."""
        return min(next((size for size in self.buckets if size >= count), count), max(self.largest, count))

    def _all(self, run: Run, job: Job, watch: Watch, finish: Finish, to_host: bool) -> Launched:
        count = len(job.positions)
        parts = [
            self._one(run, job.take(range(at, min(at + self.largest, count))), watch, finish)
            for at in range(0, count, self.largest)
        ]
        images, bad_row = (torch.cat(each) if len(parts) > 1 else each[0] for each in zip(*parts, strict=True))
        with marked("copy-out"):
            return Launched(run, job, self._copy_out(images) if to_host else Arriving(images), self._copy_out(bad_row))

    def _one(self, run: Run, job: Job, watch: Watch, finish: Finish) -> tuple[Tensor, Tensor]:
        """Images and first rows that were not finite, of a job that is one batch."""
        count = len(job.positions)
        watch = watch.at(job.positions)
        job = job.padded(self._size(count))

        def read(state: State) -> tuple[Tensor, Tensor]:
            return finish(state.x[:count]), state.bad_row[:count].clone()

        if self.captured is None or run.adaptive:
            return read(run.eagerly(job, watch))
        return self.captured.draw(run, run.inputs(job), watch, read)
