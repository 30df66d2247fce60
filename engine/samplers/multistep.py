"""Higher-order samplers in lambda = -ln sigma or sigma: DPM-Solver++, UniPC, LMS."""

import itertools
import math
from collections.abc import Iterator, Sequence

from numpy.polynomial import Polynomial

from ..allowed import integer, number
from ..plan import Row
from .tables import linear, table


@table(source="Lu et al. 2022 (DPM-Solver++), Algorithm 2 (2M)", order="2", history=True, zero_snr=True)
def dpmpp_2m(sigmas: Sequence[float]) -> Iterator[Row]:
    """DPM-Solver++(2M): exact in x, linear extrapolation of D from this step and the last; slot 0 holds the last D."""
    h_last = None
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if sigma_next == 0:
            yield linear(sigma, D=1.0)
            return
        h = math.log(sigma / sigma_next)
        new, old = (1.0, 0.0) if h_last is None else (1 + h / (2 * h_last), -h / (2 * h_last))
        part = -math.expm1(-h)
        yield linear(sigma, x=sigma_next / sigma, D=part * new, slots=[part * old], store=(0, 0.0, 1.0))
        h_last = h


@table(source="Lu et al. 2022 (DPM-Solver++), Algorithm 1 (2S)", order="2", evaluations="2")
def dpmpp_2s(sigmas: Sequence[float], r: float = 0.5) -> Iterator[Row]:
    """DPM-Solver++(2S): a second evaluation between the levels, r of the way in lambda; slot 0 holds x, slot 1 D."""
    r = number("r", r, "a number from 1e-6 to 1", lambda v: 1e-6 <= v <= 1)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if sigma_next == 0:
            yield linear(sigma, D=1.0)
            return
        h = math.log(sigma / sigma_next)
        middle = sigma * math.exp(-r * h)
        part, whole = -math.expm1(-r * h), -math.expm1(-h)
        yield linear(sigma, x=middle / sigma, D=part, keep=(0, 1.0, 0.0, ()), store=(1, 0.0, 1.0))
        first = whole * (1 - 1 / (2 * r))
        yield linear(middle, D=whole / (2 * r), slots=[sigma_next / sigma, first])


@table(
    source="Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M)",
    order="2 (eta = 0)",
    stochastic="eta > 0",
    history=True,
    zero_snr=True,
)
def dpmpp_2m_sde(sigmas: Sequence[float], eta: float = 1.0) -> Iterator[Row]:
    """SDE-DPM-Solver++(2M), midpoint form; eta scales the noise, 0 is the ODE's solver. Slot 0 holds the last D."""
    eta = number("eta", eta, "a finite number from 0", lambda v: 0 <= v < math.inf)
    h_last = None
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        if sigma_next == 0:
            yield linear(sigma, D=1.0)
            return
        h = math.log(sigma / sigma_next)
        part = -math.expm1(-h - eta * h)
        new, old = (1.0, 0.0) if h_last is None else (1 + h / (2 * h_last), -h / (2 * h_last))
        std = sigma_next * math.sqrt(-math.expm1(-2 * eta * h))
        x = sigma_next / sigma * math.exp(-eta * h)
        yield linear(sigma, x=x, D=part * new, slots=[part * old], std=std, draw=i, store=(0, 0.0, 1.0))
        h_last = h


@table(
    source="Zhao et al. 2023 (UniPC), UniPC-2 with B_2(h), data prediction",
    order="3",
    history=True,
)
def unipc(sigmas: Sequence[float]) -> Iterator[Row]:
    """UniPC: each new D first corrects the step that led to it, then predicts the next, all in one row.

    Slot 0 holds the corrected x of the step before; slots 1 and 2, in turn, the last two D.
    """
    levels = [s for s in sigmas if s > 0]
    steps = [math.log(a / b) for a, b in itertools.pairwise(levels)]
    for i, sigma in enumerate(levels):
        new, old, older = 1 + i % 2, 2 - i % 2, 1 + i % 2  # D_i overwrites D_{i-2}
        # Corrected x_i from x_{i-1} (slot 0), D_{i-1}, D_{i-2} and D_i.
        base, from_old, from_older, from_D = _unipc_corrector(levels, steps, i)
        corrected = [base, 0.0, 0.0]
        corrected[old] += from_old
        corrected[older] += from_older
        begun = i > 0
        keep = (0, 0.0, from_D, corrected) if begun else (0, 1.0, 0.0, ())
        if i == len(levels) - 1:
            yield linear(sigma, D=1.0)
            return
        h = steps[i]
        ratio, part = levels[i + 1] / sigma, -math.expm1(-h)
        tilt = part * h / (2 * steps[i - 1]) if begun else 0.0  # of D_i - D_{i-1}
        slots = [ratio * c for c in corrected]
        slots[old] -= tilt
        yield linear(
            sigma,
            x=0.0 if begun else ratio,
            D=part + tilt + (ratio * from_D if begun else 0.0),
            slots=slots if begun else (),
            keep=keep,
            store=(new, 0.0, 1.0),
        )


def _unipc_corrector(levels: Sequence[float], steps: Sequence[float], i: int) -> tuple[float, float, float, float]:
    """Weights of x_{i-1}, D_{i-1}, D_{i-2} and D_i in the corrected x_i (UniC of order 2; of order 1 at i = 1)."""
    if i == 0:
        return 0.0, 0.0, 0.0, 0.0
    h = steps[i - 1]
    ratio, phi = levels[i] / levels[i - 1], math.expm1(-h)
    if i == 1:
        return ratio, -phi + 0.5 * phi, 0.0, -0.5 * phi
    r = -steps[i - 2] / h  # where lambda_{i-2} lies, in steps h from lambda_{i-1}
    b_1 = (phi / -h - 1) / phi
    b_2 = 2 * ((phi / -h - 1) / -h - 0.5) / phi
    rho_old = (b_2 - b_1) / (r - 1)
    rho_new = b_1 - rho_old
    return ratio, -phi + phi * (rho_old / r + rho_new), -phi * rho_old / r, -phi * rho_new


@table(source="Katherine Crowson, k-diffusion (LMS); Adams-Bashforth in sigma", order="order", history=True)
def lms(sigmas: Sequence[float], order: int = 4) -> Iterator[Row]:
    """Linear multistep: the slope (x - D) / sigma extrapolated through up to ``order`` levels; slots hold old ones."""
    order = integer("order", order, 1, 4)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        used = min(i + 1, order)
        weights = _adams_bashforth([sigmas[i - j] for j in range(used)], sigma, sigma_next)
        slots = [0.0] * (order - 1)
        for j in range(1, used):
            slots[(i - j) % (order - 1)] = weights[j]
        store = (i % (order - 1), 1 / sigma, -1 / sigma) if order > 1 else None
        yield linear(sigma, x=1 + weights[0] / sigma, D=-weights[0] / sigma, slots=slots, store=store)


def _adams_bashforth(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials through ``nodes``."""
    weights = []
    for j, node in enumerate(nodes):
        basis = Polynomial([1.0])
        for other in (*nodes[:j], *nodes[j + 1 :]):
            # Around the first node, where the numbers are small: exact to rounding however large sigma is.
            basis *= Polynomial([start - other, 1.0]) / (node - other)
        integral = basis.integ()
        weights.append(float(integral(end - start) - integral(0.0)))
    return weights
