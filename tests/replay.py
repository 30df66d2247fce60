"""What stands for CUDA graphs on a CPU: work that is remembered when it is captured, and done when it is replayed.

As with CUDA, a capture does nothing yet, and a replay reads the buffers that the work was captured with, whatever is in
them then.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from engine.graphs import Graph
from engine.graphs.capture import CAPTURES


class Replay:
    """Counts what is asked of it. nbytes: what every capture is to take."""

    def __init__(self, nbytes: int = 0, most: int = 1 << 40) -> None:
        self.nbytes, self.most = nbytes, most
        self.warmed = self.captured = self.replayed = self.turns = 0

    @contextmanager
    def turn(self):
        assert self.turns % 2 == 0, "two turns at once"
        self.turns += 1
        try:
            yield
        finally:
            self.turns += 1

    def warm_up(self, work):
        self.warmed += 1
        work()

    def capture(self, work):
        self.captured += 1

        def replay():
            self.replayed += 1
            work()

        return Graph(replay, self.nbytes, 0.25)

    def lasting(self):
        assert self.turns % 2 == 1, "outside a turn"
        return nullcontext()

    def budget(self):
        return self.most


@pytest.fixture
def replay(monkeypatch):
    """The one capture of all engines that the test makes on the CPU."""
    capture = Replay()
    monkeypatch.setitem(CAPTURES, "cpu", lambda device: capture)
    torch.manual_seed(0)
    return capture
