"""Discrete-time diffusion: beta schedules, their zero-terminal-SNR form, and which of the T timesteps to visit.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) n for t = 1 .. T, alpha_bar the running product of 1 - beta.
Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", is "the paper" below.
"""

import math
import numbers
from typing import Literal, get_args

import torch
from torch import Tensor

from .allowed import integer, is_number

Schedule = Literal["linear", "cosine", "scaled-linear", "sigmoid"]
Spacing = Literal["leading", "linspace", "trailing"]
_F64 = torch.float64


def betas(schedule: Schedule = "linear", T: int = 1000, scale: float = 1.0) -> Tensor:
    """beta_1 .. beta_T, float32 [T], the precision in which models are trained and the paper tabulates.

    linear: 1e-4 to 0.02 (Ho et al. 2020), both times ``scale`` (0.25, 0.5, 0.75, 1). scaled-linear: the square of a
    line from sqrt(0.00085) to sqrt(0.012) (Stable Diffusion). cosine: Nichol and Dhariwal 2021, each at most 0.999.
    sigmoid: 1e-4 to 0.02 along a logistic curve over [-6, 6]. Raises ValueError for what is not allowed.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule is {schedule!r}; allowed: {', '.join(map(repr, get_args(Schedule)))}")
    T = integer("T", T, 2)
    if not (is_number(scale) and 0 < scale <= 1) or (scale != 1 and schedule != "linear"):
        raise ValueError(f"scale is {scale!r} with {schedule!r}; allowed: above 0 up to 1, and 1 unless linear")
    if schedule == "linear":
        exact = torch.linspace(scale * 1e-4, scale * 0.02, T, dtype=_F64, device="cpu")
    elif schedule == "scaled-linear":
        exact = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=_F64, device="cpu") ** 2
    elif schedule == "sigmoid":
        exact = torch.sigmoid(torch.linspace(-6, 6, T, dtype=_F64, device="cpu")) * (0.02 - 1e-4) + 1e-4
    else:
        time = torch.arange(T + 1, dtype=_F64, device="cpu") / T
        bar = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        exact = (1 - bar[1:] / bar[:-1]).clip(max=0.999)
    return exact.to(torch.float32)


def alpha_bar(betas: Tensor) -> Tensor:
    """alpha_bar_1 .. alpha_bar_T of betas [T], float64; 1 - beta is taken in the betas' own precision."""
    return (1 - betas).to(_F64).cumprod(0)


def snr(alpha_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) = 1 / sigma^2."""
    return alpha_bar / (1 - alpha_bar)


def sigma(alpha_bar: Tensor) -> Tensor:
    """Noise level sqrt((1 - alpha_bar) / alpha_bar) in x = y + sigma n; infinite where alpha_bar is 0."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """The paper's Algorithm 1: shift and scale sqrt(alpha_bar) so that its last is 0 and its first stays.

    The result's last beta is 1. Raises ValueError where there is nothing left to rescale.
    """
    root = alpha_bar(betas).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    if not first > last:
        raise ValueError(f"betas take sqrt(alpha_bar) from {first:.6g} to {last:.6g}; allowed: a falling sequence")
    bar = ((root - last) * first / (first - last)) ** 2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def timesteps(T: int, steps: int, spacing: Spacing = "trailing", offset: int = 0) -> list[int]:
    """Which of 1 .. T to visit, from noise to image, ``steps`` of them (the paper's Table 2).

    leading: 1 + offset + i floor(T / steps), which without an offset never visits T; linspace: both ends; trailing: T
    and every T / steps below. Raises ValueError for what is not allowed, an offset that leads beyond T among it.
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is {spacing!r}; allowed: {', '.join(map(repr, get_args(Spacing)))}")
    if not (is_number(steps, numbers.Integral) and 1 <= steps <= T):
        raise ValueError(f"steps is {steps!r}; allowed: an integer from 1 to T = {T}")
    highest = T - 1 - (steps - 1) * (T // steps) if spacing == "leading" else 0
    if not (is_number(offset, numbers.Integral) and 0 <= offset <= highest):
        raise ValueError(f"offset is {offset!r} with {spacing!r} and {steps} steps; allowed: 0 to {highest}")
    if spacing == "leading":
        chosen = [1 + offset + i * (T // steps) for i in range(steps)]
    elif spacing == "linspace":
        chosen = [round(1 + i * (T - 1) / (steps - 1)) if steps > 1 else T for i in range(steps)]
    else:
        chosen = [round(T - i * T / steps) for i in range(steps)]
    return sorted(chosen, reverse=True)
