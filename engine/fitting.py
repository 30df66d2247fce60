"""``batch_size="auto"``: the largest batch that a device's memory holds, from measured evaluations."""

from collections.abc import Callable

import torch

from .denoiser import Denoiser
from .measure import peak_bytes
from .modes import own_modes
from .probe import network_inputs, sigmas_of

LARGEST = 1024  # beyond it nothing gets faster: an evaluation fills any device
_ON_A_CPU = 64
_SHARE = 0.8  # of free memory: libraries' workspaces are not counted, and caches leave gaps
_STATE = 6 * 8  # bytes an element of an image: x, slots and what becomes of them, float64


def fitting_batch(denoiser: Denoiser, device: torch.device, copies: int = 1) -> int:
    """For a prepared denoiser: a power of two; on a CPU, where larger ones gain nothing, 64.

    copies: of a sample that an evaluation takes, 2 with classifier-free guidance. A guide of its own is not counted.
    """
    if device.type != "cuda":
        return _ON_A_CPU
    return largest_fitting(lambda batch: _bytes(denoiser, copies * batch), torch.cuda.mem_get_info(device)[0])


def largest_fitting(cost: Callable[[int], int], free: int, most: int = LARGEST) -> int:
    """The largest power of two up to ``most`` whose cost, measured for 1 and 2 and extended, leaves a margin of the
    ``free`` bytes; 1 if none does."""
    first, second = cost(1), cost(2)
    each = max(second - first, 1)
    batch = 1
    while 2 * batch <= most and first + (2 * batch - 1) * each <= _SHARE * free:
        batch *= 2
    return batch


def _bytes(denoiser: Denoiser, batch: int) -> int:
    """At most alive during an evaluation, and in the sampler's state."""
    inputs = network_inputs(denoiser, sigmas_of(denoiser, batch))
    with own_modes(inputs[0].device):
        peak = peak_bytes(lambda: denoiser.call_network(*inputs), ())
    return peak + _STATE * inputs[0].numel()
