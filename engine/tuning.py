"""A budgeted search for churn: does stochasticity help this network at this number of steps, and which?

Successive halving (Jamieson and Talwalkar 2016): many candidates on few images, the better half on twice as many, and
so on. The deterministic sampler stays in every round. Half of the budget is kept for the end, where the one that is
left meets the deterministic sampler on seeds that the search has not seen: the best of many is best partly by luck, and
on fresh seeds that luck is gone.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from .metrics import Score
from .metrics.quality import FEWEST
from .samplers import Churn, EDMSampler, Levels

# score(sampler, images, first seed)
ScoreOf = Callable[[EDMSampler, int, int], Score]
# Of gamma's ceiling; limits and noise as the paper's Table 5 has them, and none.
_SHARES = (0.1, 0.3, 1.0)
_LIMITS = ((0.0, math.inf), (0.05, 1.0), (0.05, 50.0))
_NOISE = (1.0, 1.007)


@dataclass(frozen=True)
class Round:
    """What one round found. scores: by churn, the best first."""

    images: int
    scores: tuple[tuple[Churn, Score], ...]


@dataclass(frozen=True)
class Tuned:
    """rounds: of the search. best: the churn it left. stochastic, deterministic: the scores on fresh seeds; by:
    how far the first is above the second, half: half the paired 95% interval of that."""

    rounds: tuple[Round, ...]
    best: Churn
    stochastic: Score
    deterministic: Score
    images: int
    by: float
    half: float

    @property
    def verdict(self) -> str:
        if self.by < -self.half:
            return "stochasticity helps"
        return "stochasticity hurts" if self.by > self.half else "stochasticity does not help beyond noise"


def candidates(steps: int) -> list[Churn]:
    """S_churn up to gamma's ceiling, steps (sqrt(2) - 1), with all limits and S_noise."""
    ceiling = steps * (math.sqrt(2) - 1)
    grid = itertools.product(_SHARES, _LIMITS, _NOISE)
    return [Churn(round(share * ceiling, 3), *limits, noise) for share, limits, noise in grid]


def tune_churn(score: ScoreOf, steps: int, budget: int, tell: Callable[[Round], object] = lambda found: None) -> Tuned:
    """Search the churn of `samplers.edm` at so many steps with ``budget`` images in all, or a few fewer.

    Raises ValueError for a budget whose first round would have too few images for intervals.
    """
    left = candidates(steps)
    rounds_ahead = math.ceil(math.log2(len(left)))
    images = budget // 2 // sum(_costs(len(left), rounds_ahead))
    if images < FEWEST:
        least = 2 * FEWEST * sum(_costs(len(left), rounds_ahead))
        raise ValueError(f"budget is {budget}; allowed: from {least} images")
    rounds = []
    while len(left) > 1:
        found = _round(score, steps, left, images)
        tell(found)
        rounds.append(found)
        left = [churn for churn, _ in found.scores if churn.S_churn > 0][: math.ceil(len(left) / 2)]
        images *= 2
    seen = images // 2
    fresh = budget // 4
    stochastic, deterministic = (score(_sampler(steps, churn), fresh, seen) for churn in (left[0], Churn()))
    return Tuned(tuple(rounds), left[0], stochastic, deterministic, fresh, *stochastic.above(deterministic))


def _costs(count: int, rounds: int) -> list[int]:
    """Images of each round, in units of the first round's for each sampler; one more sampler adds no noise."""
    return [(math.ceil(count / 2**number) + 1) * 2**number for number in range(rounds)]


def _round(score: ScoreOf, steps: int, left: list[Churn], images: int) -> Round:
    scores = [(churn, score(_sampler(steps, churn), images, 0)) for churn in [Churn(), *left]]
    return Round(images, tuple(sorted(scores, key=lambda pair: pair[1].distance)))


def _sampler(steps: int, churn: Churn) -> EDMSampler:
    return EDMSampler(Levels(steps, 0.002, 80.0), churn)
