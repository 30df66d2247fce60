"""The list of all samplers: what the documentation's table, the command line and the tests go through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..plan import Sampler

Make = TypeVar("Make", bound=Callable[..., Sampler])


@dataclass(frozen=True)
class Entry:
    """One sampler. ``make(**options)`` builds it; its signature and docstring say the rest.

    source: paper and algorithm. order: of convergence on the ODE. evaluations: of the network, a step.
    stochastic: "no", "yes", or the condition under which it draws noise. history: whether it needs earlier steps.
    zero_snr: whether it can start from infinite sigma.
    """

    name: str
    make: Callable[..., Sampler]
    source: str
    order: str
    evaluations: str
    stochastic: str
    history: bool
    zero_snr: bool


REGISTRY: dict[str, Entry] = {}


def listed(
    *,
    source: str,
    order: str = "1",
    evaluations: str = "1",
    stochastic: str = "no",
    history: bool = False,
    zero_snr: bool = False,
) -> Callable[[Make], Make]:
    """Puts a function that makes a sampler on the list under its own name."""

    def put(make: Make) -> Make:
        entry = Entry(make.__name__, make, source, order, evaluations, stochastic, history, zero_snr)
        REGISTRY[make.__name__] = entry
        return make

    return put
