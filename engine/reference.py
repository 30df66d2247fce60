"""The numerical contract in plain torch: the paper's Algorithm 2, and `advance`, the same arithmetic by table row.

Every backend computes each element with this sequence of IEEE-754 operations. Three habits keep it honest: no fused
torch operation (addcmul, lerp, alpha=); division by a tensor on x's device, never by a number, because CUDA torch
turns a division by a number into a multiplication by its reciprocal; no torch square root, because on some CPUs its
library is an ulp off.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .plan import COLUMNS, Op
from .preconditioning import Preconditioning
from .state import State

_INDEX = {name: index for index, name in enumerate(COLUMNS)}


def algorithm2(
    denoise: Callable[[Tensor, Tensor], Tensor],
    preconditioning: Preconditioning,
    latents: Tensor,
    eps: Callable[[int], Tensor],
    *,
    steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = math.inf,
    S_noise: float = 1.0,
    state_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Algorithm 2 of Karras et al. 2022, sigma(t) = t and s(t) = 1: latents [B, C, *spatial] -> images, state dtype.

    denoise(x [B, ...] in the state dtype, sigma [B] float32) -> D float32; eps(i) -> unit noise [B, ...] of step i,
    called only when the step churns. It shares no code with `Plan`, so that each can be checked against the other.
    """
    device = latents.device
    round_sigma, (lowest, highest) = preconditioning.round_sigma, preconditioning.sigma_range
    low, high = max(sigma_min, lowest), min(sigma_max, highest)
    index = torch.arange(steps, dtype=torch.float64)
    ramp = index / (steps - 1) if steps > 1 else index
    t_steps = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t_steps = torch.cat([round_sigma(t_steps), torch.zeros(1, dtype=torch.float64)])

    def slope(x: Tensor, t: Tensor) -> Tensor:
        D = denoise(x, t.to(device, torch.float32).expand(len(x))).to(state_dtype)
        return (x - D) / t.to(device, state_dtype)

    x_next = latents.to(state_dtype) * t_steps[0].item()
    for i, (t, t_next) in enumerate(itertools.pairwise(t_steps)):
        x = x_next
        gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_tmin <= t <= S_tmax else 0
        t_hat = round_sigma(t + gamma * t)
        std = math.sqrt(t_hat * t_hat - t * t) * S_noise
        x_hat = x + std * eps(i).to(state_dtype) if std != 0 else x
        h = (t_next - t_hat).item()
        d = slope(x_hat, t_hat)
        x_next = x_hat + h * d
        if t_next != 0:
            d_prime = slope(x_next, t_next)
            x_next = x_hat + h * (0.5 * d + 0.5 * d_prime)
    return x_next


def advance(F: Tensor | None, state: State, k: int) -> None:
    """Consume F of each sample's row ``base_row[b] + k`` and prepare the next network input; see `plan.Row`.

    F: [B, >=C, *spatial] in any float dtype, any layout; None if every row is BEGIN. Writes x, d, net_in, c_noise
    and bad_row of ``state`` in place.
    """
    rows = (state.base_row + k).tolist()
    for row in sorted(set(rows)):
        samples = [b for b, r in enumerate(rows) if r == row]
        _advance_row(F, state, row, samples)


def _advance_row(F: Tensor | None, state: State, row: int, samples: list[int]) -> None:
    """All samples that are at the same row."""
    pick: slice | list[int] = slice(None) if len(samples) == len(state.x) else samples
    dtype = state.x.dtype
    host = state.table[row].tolist()

    def value(name: str) -> float:
        return float(host[_INDEX[name]])

    def scalar(name: str, dtype: torch.dtype) -> Tensor:
        return state.table[row, _INDEX[name]].to(dtype)

    op = Op(int(value("op")))
    x, d = state.x[pick], state.d[pick]
    if op is Op.BEGIN:
        x_next = state.noise.latents()[pick].to(dtype) * scalar("begin_scale", dtype)
    else:
        assert F is not None
        x_eval = x + scalar("h_predict", dtype) * d if op is Op.CORRECT else x
        D = _denoised(F[pick], x_eval, scalar).to(dtype)
        slope = (scalar("slope_x", dtype) * x_eval - scalar("slope_D", dtype) * D) / scalar("slope_t", dtype)
        if op is Op.CORRECT:
            x_next = x + scalar("h", dtype) * (scalar("w_0", dtype) * d + scalar("w_1", dtype) * slope)
        else:
            x_next = x + scalar("h", dtype) * slope
        if op is Op.PREDICT:
            state.d[pick] = slope
    if op is not Op.PREDICT:
        x_next = scalar("ratio", dtype) * x_next
        if value("std") != 0:
            eps = state.noise.eps(int(value("draw")), samples).to(dtype)
            x_next = x_next + scalar("std", dtype) * eps
        state.x[pick] = x_next
    if value("evaluate"):
        net_in = _input_dtype(x_next / scalar("s_next", dtype), state.net_in.dtype)
        state.net_in[pick] = (scalar("c_in", net_in.dtype) * net_in).to(state.net_in.dtype)
        state.c_noise[pick] = scalar("c_noise", torch.float32)
    broken = ~torch.isfinite(x_next).flatten(1).all(1)
    first = broken & (state.bad_row[pick] < 0)
    state.bad_row[pick] = torch.where(first, row, state.bad_row[pick])


def _denoised(F: Tensor, x_eval: Tensor, scalar: Callable[[str, torch.dtype], Tensor]) -> Tensor:
    """D = c_skip * x + c_out * F in float32 (float64 for a float64 network)."""
    x = _input_dtype(x_eval / scalar("s", x_eval.dtype), F.dtype)
    F = F[:, : x.shape[1]].to(x.dtype)
    return scalar("c_skip", x.dtype) * x + scalar("c_out", x.dtype) * F


def _input_dtype(x: Tensor, net_dtype: torch.dtype) -> Tensor:
    """Preconditioning is float32 whatever the network's half precision; a float64 network keeps float64."""
    return x.to(torch.promote_types(net_dtype, torch.float32))
