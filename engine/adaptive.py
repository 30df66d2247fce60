"""The adaptive solver behind `samplers.rk45`: Dormand-Prince 5(4), every sample at its own step size.

It is the baseline that fixed steps are measured against, and a way to the ODE's solution as exact as one likes. Its
number of evaluations depends on the data, so it runs eagerly, outside `advance` and outside CUDA graphs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import per_sample
from .samplers.adaptive import AdaptiveSampler

# slope(x [n, ...], t [n], samples [n]) -> dx/dt [n, ...]; samples: which of the batch these are
Slope = Callable[[Tensor, Tensor, Tensor], Tensor]

_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (  # the last stage is the fifth-order result, and its slope the next step's first
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)  # fmt: skip
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # fifth order less fourth


class TooManyEvaluations(ArithmeticError):
    """A sample takes more than ``max_nfe``; ``sample`` says which of the batch."""

    def __init__(self, sample: int, what: str) -> None:
        super().__init__(what)
        self.sample = sample


def solve(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    sigma_from: float,
    sigma_to: float,
    sampler: AdaptiveSampler,
    on_evaluation: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Carry x [B, ...] along the probability-flow ODE (s = 1) between two noise levels above 0, in either direction.

    denoise(x [n, ...], sigma float32 [n], samples int64 [n]) -> D; ``samples`` says which of the batch these are.
    Returns x in its dtype, and the number of evaluations of each sample, int64 [B]. A sample that stops being finite
    ends as NaN. Raises `TooManyEvaluations` when one takes more than ``sampler.max_nfe``.
    """

    def slope(x: Tensor, t: Tensor, samples: Tensor) -> Tensor:
        on_evaluation()
        return (x - denoise(x, t.to(torch.float32), samples).to(x.dtype)) / per_sample(t, x)

    return dormand_prince(slope, x, sigma_from, sigma_to, sampler.rtol, sampler.atol, sampler.max_nfe)


def dormand_prince(
    slope: Slope, x: Tensor, start: float, end: float, rtol: float, atol: float, max_nfe: int
) -> tuple[Tensor, Tensor]:
    """x(end) and the evaluations each sample took, for dx/dt = slope from x(start) = x; see `solve`."""
    x = x.clone()
    t = torch.full([len(x)], start, dtype=torch.float64, device=x.device)
    samples = torch.arange(len(x), device=x.device)
    first, h = _first_step(slope, x, t, samples, end, rtol, atol)
    nfe = torch.full_like(samples, 2)
    rejected = torch.zeros_like(samples, dtype=torch.bool)
    direction = 1.0 if end > start else -1.0
    while len(samples):
        x_now, t_now = x[samples], t[samples]
        left = (end - t_now).abs()
        step = torch.minimum(h[samples], left)
        signed = direction * step
        x_next, error, last = _stages(slope, x_now, first[samples], t_now, signed, samples)
        nfe[samples] += 6
        worst = _rms(error, atol + rtol * torch.maximum(x_now.abs(), x_next.abs()))
        accepted, broken = worst < 1, ~torch.isfinite(worst)
        factor = (0.9 * worst.clamp(min=1e-10) ** -0.2).clamp(0.2, 10.0)
        factor = torch.where(~accepted | rejected[samples], factor.clamp(max=1.0), factor)
        moved = accepted | broken
        x[samples[moved]], first[samples[moved]] = x_next[moved], last[moved]
        x[samples[broken]] = torch.nan  # also where only the error estimate is not finite: x has not arrived
        ended = (accepted & (step >= left)) | broken
        t[samples] = torch.where(moved, torch.where(ended, end, t_now + signed), t_now)
        h[samples], rejected[samples] = step * factor, ~accepted
        samples = samples[~ended]
        if len(samples) and int(nfe[samples].max()) + 6 > max_nfe:
            worst_of_all = int(samples[nfe[samples].argmax()])
            raise TooManyEvaluations(
                worst_of_all,
                f"more than max_nfe = {max_nfe} evaluations for rtol = {rtol}, atol = {atol}; allowed: larger ones",
            )
    return x, nfe


def _stages(
    slope: Slope, x: Tensor, first: Tensor, t: Tensor, h: Tensor, samples: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of size h [n]: the new x, its error estimate, and the slope there."""
    slopes, width = [first], per_sample(h, x)
    for c, weights in zip(_C, _A, strict=True):
        x_stage = x + width * sum(w * k for w, k in zip(weights, slopes, strict=True) if w != 0)
        slopes.append(slope(x_stage, t + c * h, samples))
    return x_stage, width * sum(w * k for w, k in zip(_ERROR, slopes, strict=True) if w != 0), slopes[-1]


def _first_step(
    slope: Slope, x: Tensor, t: Tensor, samples: Tensor, end: float, rtol: float, atol: float
) -> tuple[Tensor, Tensor]:
    """The slope at the start and a step size for each sample (Hairer, Norsett, Wanner, section II.4)."""
    first = slope(x, t, samples)
    scale, span = atol + rtol * x.abs(), (end - t).abs()
    d_0, d_1 = _rms(x, scale), _rms(first, scale)
    h_0 = torch.where((d_0 < 1e-5) | (d_1 < 1e-5), 1e-6, 0.01 * d_0 / d_1.clamp(min=1e-300)).minimum(span)
    signed = h_0 * (end - t).sign()
    second = slope(x + per_sample(signed, x) * first, t + signed, samples)
    d_2 = _rms(second - first, scale) / h_0
    flat = torch.maximum(d_1, d_2) <= 1e-15
    h_1 = torch.where(flat, (h_0 * 1e-3).clamp(min=1e-6), (0.01 / torch.maximum(d_1, d_2).clamp(min=1e-300)) ** 0.2)
    return first, torch.minimum(100 * h_0, h_1).minimum(span)


def _rms(x: Tensor, scale: Tensor) -> Tensor:
    """Root mean square of x / scale over each sample, float64 [n]."""
    return (x / scale).flatten(1).to(torch.float64).square().mean(1).sqrt()
