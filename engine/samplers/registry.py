"""The list of all samplers: what the documentation's table, the command line and the tests go through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..allowed import require

Make = TypeVar("Make", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One sampler. ``make(**options)`` builds it; its signature and docstring say the rest.

    source: paper and algorithm. order: of convergence on the ODE. evaluations: of the network, a step.
    stochastic: "no", "yes", or the condition under which it draws noise. history: whether it needs earlier steps.
    zero_snr: whether it can start from infinite sigma. fused: whether it is a table that `advance` runs; if not, it is
    adaptive and runs eagerly.
    """

    name: str
    make: Callable[..., Any]
    source: str
    order: str
    evaluations: str
    stochastic: str
    history: bool
    zero_snr: bool
    fused: bool


REGISTRY: dict[str, Entry] = {}


def listed(
    *,
    source: str,
    order: str = "1",
    evaluations: str = "1",
    stochastic: str = "no",
    history: bool = False,
    zero_snr: bool = False,
    fused: bool = True,
) -> Callable[[Make], Make]:
    """Puts a function that makes a sampler on the list under its own name.

    Raises ValueError for a property that is not of its type, and for a name that another module has listed: it would be
    gone for the whole process. The same module may list it again, as a notebook's cell does that is run twice.
    """

    for told, value in (("source", source), ("order", order), ("evaluations", evaluations), ("stochastic", stochastic)):
        require(told, value, isinstance(value, str), "text, as `samplers.registry.Entry` says")

    def put(make: Make) -> Make:
        name = make.__name__
        owner = REGISTRY[name].make.__module__ if name in REGISTRY else make.__module__
        require("the sampler's name", name, make.__module__ == owner, f"one that {owner} has not listed already")
        REGISTRY[name] = Entry(name, make, source, order, evaluations, stochastic, history, zero_snr, fused)
        return make

    return put
