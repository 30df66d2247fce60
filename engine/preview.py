"""What a callback is told while a batch is drawn, and the denoised image it may look at."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import per_sample
from .state import State


@dataclass(frozen=True)
class Progress:
    """A batch on its way. positions: where its images stand in what was asked for; evaluation: how many evaluations are
    done, of ``nfe``; sigma: the noise level of the last; denoised: D there, float32 [B, C, *spatial], on the device,
    the callback's own."""

    positions: tuple[int, ...]
    evaluation: int
    nfe: int
    sigma: float
    denoised: Tensor


Callback = Callable[[Progress], object]


def denoised(F: Tensor, G: Tensor | None, state: State, k: int) -> Tensor:
    """D of evaluation k, float32 [B, C, *spatial], from the network's input as rounded to its dtype: for looking at.

    D = c_skip x + c_out (guide_F F + guide_G G), without the rescaling of guidance, and what is known where it is.
    """
    count, channels = state.x.shape[:2]
    level = state.level(k)
    x = state.net_in[:count, :channels].to(torch.float32)
    c_skip, c_out, c_in, guide_F, guide_G = (per_sample(c, x) for c in level[1:])
    mixed = F[:, :channels].to(torch.float32)
    if G is not None:
        mixed = guide_F * mixed + guide_G * G[:, :channels].to(torch.float32)
    D = c_skip * (x / c_in) + c_out * mixed
    return D if state.known is None else torch.where(state.known.isnan(), D, state.known)
