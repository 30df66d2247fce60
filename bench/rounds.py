"""Slow calls timed in turn, and work that may not take longer than it was given."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Seconds a call in each round, and what those raised that failed; each must end with its result on the host.

    Every call has its turn in every round, so that a noisy neighbour hits all of them. Quick ones are repeated within a
    turn; one that has had its ``seconds`` has no further turn, but each has one.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    failed: dict[str, Exception] = {}
    spent = dict.fromkeys(calls, 0.0)
    for turn in tqdm(range(rounds), desc="rounds", leave=False, disable=None):
        for name, call in calls.items():
            if name in failed or (turn and spent[name] + found[name][-1] > seconds):
                continue
            repeats = max(1, int(seconds / rounds / found[name][-1])) if turn else 1
            started = time.perf_counter()
            try:
                for _ in range(repeats):
                    call()
            except Exception as error:  # of one variant, which must not cost the others
                failed[name] = error
                continue
            taken = time.perf_counter() - started
            spent[name] += taken
            found[name].append(taken / repeats)
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
