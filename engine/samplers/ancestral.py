"""One-step samplers: DDIM and its ancestral relatives, Euler-Maruyama, annealed Langevin dynamics."""

import itertools
import math
from collections.abc import Iterator, Sequence

from ..allowed import integer, number
from ..plan import Row
from .tables import linear, table


@table(source="Song, Meng, Ermon 2021 (DDIM), equations 12 and 16", stochastic="eta > 0", zero_snr=True)
def ddim(sigmas: Sequence[float], eta: float = 0.0) -> Iterator[Row]:
    """DDIM; in x = y + sigma n its deterministic form (eta = 0) is Euler's method, and eta = 1 is DDPM's sampler."""
    eta = number("eta", eta, "a number from 0 to 1", lambda v: 0 <= v <= 1)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        up = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        down = math.sqrt(sigma_next**2 - up**2)
        yield linear(sigma, x=down / sigma, D=1 - down / sigma, std=up, draw=i)


@table(
    source="Ho, Jain, Abbeel 2020 (DDPM), Algorithm 2, posterior variance; k-diffusion's Euler ancestral",
    stochastic="yes",
    zero_snr=True,
)
def ddpm(sigmas: Sequence[float]) -> Iterator[Row]:
    """Ancestral sampling of the Markov chain, with the posterior's variance (beta tilde)."""
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        kept = (sigma_next / sigma) ** 2  # of x; the posterior's mean is kept x + (1 - kept) D
        yield linear(sigma, x=kept, D=1 - kept, std=sigma_next * math.sqrt(1 - kept), draw=i)


@table(source="Song et al. 2021 (score SDE), reverse diffusion predictor of the VE SDE", stochastic="yes")
def euler_maruyama(sigmas: Sequence[float]) -> Iterator[Row]:
    """The reverse SDE dx = -2 sigma score dsigma + sqrt(2 sigma) dw in steps of sigma^2; the last adds no noise."""
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        yield _reverse_diffusion(sigma, sigma_next, i)


def _reverse_diffusion(sigma: float, sigma_next: float, draw: int) -> Row:
    part = (sigma**2 - sigma_next**2) / sigma**2
    std = math.sqrt(sigma**2 - sigma_next**2) if sigma_next > 0 else 0.0
    return linear(sigma, x=1 - part, D=part, std=std, draw=draw)


@table(
    source="Song et al. 2021 (score SDE), Algorithms 2 and 4 (VE)",
    evaluations="2",
    stochastic="yes",
)
def predictor_corrector(sigmas: Sequence[float], snr: float = 0.16) -> Iterator[Row]:
    """At every level one Langevin corrector, then the reverse diffusion predictor; the last step adds no noise.

    The corrector's step size is 2 (snr |z| / |score|)^2 with |z| / |score| taken at its expectation, sigma, instead of
    measured in each batch: so it is a table, and a sample does not depend on its batch.
    """
    snr = number("snr", snr, "a number between 0 and 1", lambda v: 0 < v < 1)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        step = 2 * snr**2  # in units of sigma^2: x + step sigma^2 score + sqrt(2 step) sigma z
        yield linear(sigma, x=1 - step, D=step, std=math.sqrt(2 * step) * sigma, draw=2 * i)
        yield _reverse_diffusion(sigma, sigma_next, 2 * i + 1)


@table(source="Song, Ermon 2019 (NCSN), Algorithm 1, and 2020 (NCSNv2)", evaluations="inner", stochastic="yes")
def langevin(sigmas: Sequence[float], inner: int = 5, epsilon: float = 0.1) -> Iterator[Row]:
    """Annealed Langevin dynamics: ``inner`` steps of size 2 epsilon sigma^2 at every level; the very last returns D.

    NCSNv2's levels are discretization="ve". epsilon is the papers' step size as a share of each level's variance.
    """
    inner = integer("inner", inner, 1)
    epsilon = number("epsilon", epsilon, "a number between 0 and 1", lambda v: 0 < v < 1)
    for i, sigma in enumerate(sigmas[:-1]):
        for j in range(inner):
            # x + epsilon sigma^2 score + sqrt(2 epsilon) sigma n, score = (D - x) / sigma^2
            last = i == len(sigmas) - 2 and j == inner - 1
            std = 0.0 if last else math.sqrt(2 * epsilon) * sigma
            x, D = (0.0, 1.0) if last else (1 - epsilon, epsilon)
            yield linear(sigma, x=x, D=D, std=std, draw=i * inner + j)
