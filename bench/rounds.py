"""Slow calls timed in turn, and work that may not take longer than it was given."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from tqdm import tqdm


class Turn(NamedTuple):
    """Of one call: seconds that passed, and seconds of all this process's threads on the CPU, the mean of a turn's."""

    seconds: float
    cpu: float


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float
) -> tuple[dict[str, list[Turn]], dict[str, Exception]]:
    """Each call's turns, one a round, and what those raised that failed; each must end with its result on the host.

    Every call has its turn in every round, so that a noisy neighbour hits all of them. Quick ones are repeated within a
    turn; one that has had its ``seconds`` has no further turn, but each has one.
    """
    found: dict[str, list[Turn]] = {name: [] for name in calls}
    failed: dict[str, Exception] = {}
    spent = dict.fromkeys(calls, 0.0)
    for turn in tqdm(range(rounds), desc="rounds", leave=False, disable=None):
        for name, call in calls.items():
            if name in failed or (turn and spent[name] + found[name][-1].seconds > seconds):
                continue
            repeats = max(1, int(seconds / rounds / found[name][-1].seconds)) if turn else 1
            started, busy = time.perf_counter(), time.process_time()
            try:
                for _ in range(repeats):
                    call()
            except Exception as error:  # of one variant, which must not cost the others
                failed[name] = error
                continue
            taken = time.perf_counter() - started
            spent[name] += taken
            found[name].append(Turn(taken / repeats, (time.process_time() - busy) / repeats))
    return {name: times for name, times in found.items() if name not in failed}, failed


class OutOfTime(BaseException):
    """Not an Exception: compilers catch those and go on."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the work inside when it has taken so long. In the main thread of a Unix process."""

    def end(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
