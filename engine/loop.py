"""The sampling loop: network, advance, network, advance. The same functions for every sampler and backend, run row by
row or captured in CUDA graphs (`engine.graphs`)."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .backends import Backend
from .ranges import marked
from .state import State

Network = Callable[[State, int, bool], tuple[Tensor, Tensor | None]]
Look = Callable[[Tensor, Tensor | None, State, int], object]


def run(
    network: Network,
    state: State,
    guided: Sequence[bool],
    backend: Backend,
    look: Callable[[int], Look | None] = lambda k: None,
    after: Callable[[int], object] = lambda k: None,
) -> None:
    """Carry ``state`` from its noise to the images: BEGIN, then an evaluation and one ``advance`` for every other row.

    guided: for each row of the plan, BEGIN included, whether any sample's evaluation is guided.
    network(state, k, guided) -> F and, where guided, G, evaluated at state.net_in [copies * B, C, *spatial] and
    state.c_noise [copies * B]. look(k): who looks at evaluation k, if anybody (`step`); after(k) is called when it has
    been consumed.
    """
    begin(state, backend)
    for k in range(len(guided) - 1):
        step(network, state, k, guided[k + 1], backend, look(k))
        after(k)


def begin(state: State, backend: Backend) -> None:
    """Row 0: the latents become x and the first network input."""
    with marked("advance"):
        backend.advance(None, state, 0)


def step(network: Network, state: State, k: int, guided: bool, backend: Backend, look: Look | None = None) -> None:
    """One evaluation and the ``advance`` that consumes it; look(F, G, state, k) is called between the two."""
    with marked(f"row {k + 1}"):
        with marked("unet"):
            F, G = network(state, k, guided)
        if look is not None:
            look(F, G, state, k)
        with marked("advance"):
            backend.advance(F, state, k + 1, G)
