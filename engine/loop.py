"""The sampling loop: network, advance, network, advance. The same function for every sampler and backend."""

from collections.abc import Callable

from torch import Tensor

from .backends import Backend
from .state import State

Network = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]


def run(network: Network, state: State, nfe: int, backend: Backend, on_evaluation: Callable[[], None]) -> None:
    """Carry ``state`` from its noise to the images: BEGIN, then nfe evaluations each followed by one ``advance``.

    network(net_in [copies * B, C, *spatial], c_noise [copies * B], k) -> F and, where row k + 1 is guided, G.
    ``on_evaluation`` is called after each evaluation.
    """
    backend.advance(None, state, 0)
    for k in range(nfe):
        F, G = network(state.net_in, state.c_noise, k)
        backend.advance(F, state, k + 1, G)
        on_evaluation()
