"""The numerical contract in plain torch: the paper's Algorithm 2, and `advance`, the same arithmetic by table row.

Every backend computes each element with this sequence of IEEE-754 operations. Three habits keep it honest: no fused
torch operation (addcmul, lerp, alpha=); division by a tensor on x's device, never by a number, because CUDA torch
turns a division by a number into a multiplication by its reciprocal; no torch square root, because on some CPUs its
library is an ulp off.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .plan import COLUMNS, KEEP_FROM, STORE_FROM, X_FROM, Op, Row, slots_used
from .preconditioning import Preconditioning
from .state import State

Value = Callable[[str], float]
Scalar = Callable[[str, torch.dtype], Tensor]
GUIDE_LANES = 512
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
    round_sigma = preconditioning.round_sigma
    low, high = max(sigma_min, preconditioning.sigma_min), min(sigma_max, preconditioning.sigma_max)
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


def advance(F: Tensor | None, state: State, k: int, G: Tensor | None = None) -> None:
    """Consume F of each sample's row ``base_row[b] + k`` and prepare the next network input; see `plan.Row`.

    F: [B, >=C, *spatial] in any float dtype, any layout; None if every row is BEGIN. G: the same of the evaluation that
    guides, in F's dtype; None if no row is guided. Writes x, slots, net_in, c_noise, bad_row and guide_scale of
    ``state`` in place. Raises IndexError for a row outside the table, ValueError for one the state lacks F, G, noise or
    a slot for; then nothing has been written.
    """
    rows = (state.base_row + k).tolist()
    for row in dict.fromkeys(rows):  # in the order of the samples, each row once
        _refuse_row(F, G, state, rows.index(row), row)
    for row in sorted(set(rows)):
        samples = [b for b, r in enumerate(rows) if r == row]
        _advance_row(F, G, state, row, samples)


def guide_scale(plain: Tensor, guided: Tensor, rescale: float) -> float:
    """By how much a guided F of one sample is to be multiplied, so that its spread is that of the plain one.

    rescale * std(plain) / std(guided) + (1 - rescale): section 3.4 of "Common Diffusion Noise Schedules and Sample
    Steps Are Flawed" (Lin et al. 2024), phi = rescale. 1 in place of the ratio where the guided F is constant.
    """
    wanted, found = _variation(plain), _variation(guided)
    ratio = math.sqrt((wanted if wanted > 0 else 0.0) / found) if found > 0 else 1.0
    return rescale * ratio + (1 - rescale)


def _variation(values: Tensor) -> float:
    """n times the variance of n values, in float64: sum of squares - square of sum / n.

    The order of the sums is part of the contract: 512 lanes, each over every 512th value; then neighbours in pairs.
    """
    flat = values.flatten().to(torch.float64)
    lanes = torch.nn.functional.pad(flat, (0, -len(flat) % GUIDE_LANES)).reshape(-1, GUIDE_LANES)
    total = torch.zeros_like(lanes[0])
    squares = total
    for chunk in lanes:
        total, squares = total + chunk, squares + chunk * chunk
    while len(total) > 1:
        total, squares = total[::2] + total[1::2], squares[::2] + squares[1::2]
    return squares.item() - total.item() * total.item() / len(flat)


def _refuse_row(F: Tensor | None, G: Tensor | None, state: State, b: int, row: int) -> None:
    """What sample b's row needs must be there."""
    what = f"advance: sample {b} is at row {row}"
    if not 0 <= row < len(state.table):
        raise IndexError(f"{what}; the table has {len(state.table)} rows")
    value = dict(zip(COLUMNS, state.table[row].tolist(), strict=True))
    if value["op"] not in list(Op):
        raise ValueError(f"{what}: its op is unknown")
    if value["op"] != Op.BEGIN and F is None:
        raise ValueError(f"{what}: it needs F, which is None")
    if value["op"] != Op.BEGIN and value["guide_G"] != 0 and G is None:
        raise ValueError(f"{what}: it is guided by G, which is None")
    if value["op"] != Op.BEGIN and value["rescale"] != 0 and state.guide_scale is None:
        raise ValueError(f"{what}: it rescales, and guide_scale is not allocated")
    noise, noisy = state.noise, value["op"] != Op.PREDICT and value["std"] != 0
    begins = value["op"] == Op.BEGIN and noise.latents is None
    if noise.seeds is None and (begins or (noisy and noise.eps is None)):
        raise ValueError(f"{what}: it draws noise, and there are neither seeds nor a buffer")
    if noisy and not 0 <= value["draw"] < (math.inf if noise.eps is None else len(noise.eps)):
        raise ValueError(f"{what}: its draw is {value['draw']:.0f}; the noise has fewer, or it is negative")
    used = slots_used(Row(**value | {"op": Op(int(value["op"]))}))
    if used > len(state.slots):
        raise ValueError(f"{what}: it uses a slot that is not allocated")


def _advance_row(F: Tensor | None, G: Tensor | None, state: State, row: int, samples: list[int]) -> None:
    """All samples that are at the same row."""
    pick: slice | list[int] = slice(None) if len(samples) == len(state.x) else samples
    dtype = state.x.dtype
    host = state.table[row].tolist()

    def value(name: str) -> float:
        return float(host[_INDEX[name]])

    def scalar(name: str, dtype: torch.dtype) -> Tensor:
        return state.table[row, _INDEX[name]].to(dtype)

    op = Op(int(value("op")))
    x = state.x[pick]
    if op is Op.BEGIN:
        x_next = state.noise.begin(samples).to(dtype) * scalar("begin_scale", dtype)
    else:
        assert F is not None
        x_eval = x + scalar("h_predict", dtype) * state.slots[0, pick] if op is Op.CORRECT else x
        guided = _guided(F[pick], None if G is None else G[pick], x.shape[1], value, scalar)
        if value("rescale") != 0:
            assert state.guide_scale is not None
            plain = _guided(F[pick], None, x.shape[1], value, scalar)
            factors = [guide_scale(*pair, value("rescale")) for pair in zip(plain, guided, strict=True)]
            state.guide_scale[pick] = torch.tensor(factors, dtype=torch.float64, device=x.device)
            guided = guided * state.guide_scale[pick].to(guided.dtype).reshape(-1, *[1] * (x.dim() - 1))
        D = _denoised(guided, x_eval, scalar).to(dtype)
        if state.known is not None:
            known = state.known[pick]
            D = torch.where(known.isnan(), D, known.to(dtype))
        if op is Op.LINEAR:
            terms = [x, D, *state.slots[:, pick]]
            x_next = _combine(X_FROM, terms, value, scalar)
            written = {int(value("keep_slot")): KEEP_FROM, int(value("store_slot")): STORE_FROM}
            sums = {slot: _combine(names, terms, value, scalar) for slot, names in written.items() if slot >= 0}
            for slot, total in sums.items():
                state.slots[slot, pick] = total
        else:
            slope = (scalar("slope_x", dtype) * x_eval - scalar("slope_D", dtype) * D) / scalar("slope_t", dtype)
            if op is Op.CORRECT:
                total = scalar("w_0", dtype) * state.slots[0, pick] + scalar("w_1", dtype) * slope
                x_next = x + scalar("h", dtype) * total
            else:
                x_next = x + scalar("h", dtype) * slope
            if op is Op.PREDICT:
                state.slots[0, pick] = slope
    if op is not Op.PREDICT:
        x_next = scalar("ratio", dtype) * x_next
        if value("std") != 0:
            eps = state.noise.step(int(value("draw")), samples).to(dtype)
            x_next = x_next + scalar("std", dtype) * eps
        state.x[pick] = x_next
    if value("evaluate"):
        net_in = _input_dtype(x_next / scalar("s_next", dtype), state.net_in.dtype)
        net_in = (scalar("c_in", net_in.dtype) * net_in).to(state.net_in.dtype)
        for copy in range(0, len(state.net_in), len(state.x)):
            at = [copy + b for b in samples]
            state.net_in[at, : x.shape[1]] = net_in
            state.c_noise[at] = scalar("c_noise", torch.float32)
    broken = ~torch.isfinite(x_next).flatten(1).all(1)
    first = broken & (state.bad_row[pick] < 0)
    state.bad_row[pick] = torch.where(first, row, state.bad_row[pick])


def _combine(names: Sequence[str], terms: list[Tensor], value: Value, scalar: Scalar) -> Tensor:
    """Sum of coefficient times term from left to right, without the terms whose coefficient is 0."""
    products = [scalar(name, t.dtype) * t for name, t in zip(names, terms, strict=False) if value(name) != 0]
    return sum(products[1:], start=products[0]) if products else torch.zeros_like(terms[0])


def _guided(F: Tensor, G: Tensor | None, channels: int, value: Value, scalar: Scalar) -> Tensor:
    """guide_F * F + guide_G * G in float32 (float64 for a float64 network); F itself where the row is not guided."""
    F = _input_dtype(F[:, :channels], F.dtype)
    if value("guide_G") == 0 or G is None:
        return F
    G = _input_dtype(G[:, :channels], G.dtype)
    return scalar("guide_F", F.dtype) * F + scalar("guide_G", F.dtype) * G


def _denoised(F: Tensor, x_eval: Tensor, scalar: Scalar) -> Tensor:
    """D = c_skip * x + c_out * F in float32 (float64 for a float64 network)."""
    x = _input_dtype(x_eval / scalar("s", x_eval.dtype), F.dtype)
    return scalar("c_skip", x.dtype) * x + scalar("c_out", x.dtype) * F


def _input_dtype(x: Tensor, net_dtype: torch.dtype) -> Tensor:
    """Preconditioning is float32 whatever the network's half precision; a float64 network keeps float64."""
    return x.to(torch.promote_types(net_dtype, torch.float32))
