"""Data between host and device without making either wait: by way of pinned memory."""

from dataclasses import dataclass

import torch
from torch import Tensor


def to_device(t: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``. The host goes on while it is copied there: torch keeps the pinned memory until it is. It
    waits for a copy to itself, which it could otherwise read too early.
    """
    if device.type == "cuda" and t.device.type == "cpu":
        t = t.contiguous().pin_memory()  # one image expanded to many has no memory of its own to pin
    return t.to(device, non_blocking=device.type == "cuda")


def settle(device: torch.device) -> None:
    """Wait for what is queued on the current stream: other streams may use it from now on. Not for a loop."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@dataclass(frozen=True)
class Arriving:
    """A tensor that may still be being copied to the host; `wait` is when it is there."""

    tensor: Tensor
    there: torch.cuda.Event | None = None

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        if self.there is not None:
            self.there.synchronize()
        return self.tensor


class CopyOut:
    """Copies tensors of a device to the host, on a stream of its own: what is queued on the device meanwhile goes on.

    A CPU's tensors are there already.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, t: Tensor) -> Arriving:
        """Begins when what the current stream holds now is done; ``t`` may be let go at once."""
        if self.stream is None:
            return Arriving(t)
        host = torch.empty(t.shape, dtype=t.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(t.device))
        with torch.cuda.stream(self.stream):
            host.copy_(t, non_blocking=True)
            there = torch.cuda.Event()
            there.record(self.stream)
        t.record_stream(self.stream)
        return Arriving(host, there)
