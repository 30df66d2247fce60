"""Who draws which batch: one process all of them, or each of many the next that nobody has taken."""

import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from torch import distributed


class Team(ABC):
    """The processes that draw a job. Each holds one of these, and calls `start`, `once`, `deal`, `done` for every batch
    and `leave`.

    rank: the number of this process. last: whether it is the one whose `done` was the job's last.
    """

    rank = 0
    last = False

    def start(self, count: int) -> None:
        """A job of ``count`` batches."""
        self.count, self.last = count, False

    @abstractmethod
    def once(self, action: Callable[[], None]) -> None:
        """The first process to come carries it out; when this returns it has been done."""

    @abstractmethod
    def deal(self) -> Iterable[int]:
        """The numbers of this process's batches, each dealt when it is asked for."""

    @abstractmethod
    def done(self) -> None:
        """A batch is written, or was there."""

    @abstractmethod
    def leave(self) -> None:
        """The last call of a job, after what the last process has still to do."""


class Alone(Team):
    """One process."""

    def start(self, count: int) -> None:
        super().start(count)
        self._done = 0

    def once(self, action: Callable[[], None]) -> None:
        action()

    def deal(self) -> Iterable[int]:
        return range(self.count)

    def done(self) -> None:
        self._done += 1
        self.last = self._done == self.count

    def leave(self) -> None:
        pass


class Ranks(Team):
    """The processes that torchrun starts. They share counters in its key-value store, and so need no process group,
    whatever the device: a rank takes the next number and waits for nobody.

    Every rank must draw the same jobs in the same order. Where one process dies torchrun ends the others; a job
    resumed loses no more than the batches they were at.
    """

    _made: ClassVar[Iterator[int]] = itertools.count(1)  # by this process

    def __init__(self, store: distributed.Store, rank: int, number: int = 0) -> None:
        """number: the same for what stands for one team; others in the store have others, and so their own counters."""
        self.rank, self._root, self._number, self._jobs = rank, store, number, 0

    @classmethod
    def of_torchrun(cls) -> "Ranks":
        """This process's own. Raises ValueError outside torchrun."""
        if not launched():
            raise ValueError("no ranks: this process was not started by torchrun")
        store, rank, _ = next(distributed.rendezvous("env://"))
        return cls(store, rank, next(cls._made))

    def start(self, count: int) -> None:
        super().start(count)
        self._jobs += 1
        self._store = distributed.PrefixStore(f"edm-engine/{self._number}/{self._jobs}", self._root)

    def once(self, action: Callable[[], None]) -> None:
        if self._store.add("first", 1) == 1:
            action()
            self._store.set("begun", "")
        self._wait("begun")

    def deal(self) -> Iterator[int]:
        while (number := self._store.add("dealt", 1) - 1) < self.count:
            yield number

    def done(self) -> None:
        self.last = self._store.add("done", 1) == self.count

    def leave(self) -> None:
        """Rank 0 stays to the end: the store is on its machine."""
        if self.last:
            self._store.set("ended", "")
        elif self.rank == 0:
            self._wait("ended")

    def _wait(self, key: str) -> None:
        while not self._store.check([key]):  # its own wait() would give up after minutes
            time.sleep(0.05)


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def local_rank() -> int:
    """Which of its machine's processes this one is, as torchrun says."""
    return int(os.environ["LOCAL_RANK"])
