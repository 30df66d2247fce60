"""What a caller may have set for its thread, and what is computed for it must not see."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Inside there are no gradients, nothing is autocast on ``device``, and new tensors are not of inference mode (they
    may be written to later)."""
    autocast = torch.is_autocast_enabled(device.type)
    without = torch.autocast(device.type, enabled=False) if autocast else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), without:
        yield
