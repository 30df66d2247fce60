"""Networks whose result for a sample has the same bits in every batch: those it has alone."""

import torch
from torch import Tensor, nn

from .denoiser import Denoiser, network_dtype
from .modes import own_modes
from .networks.remembered import Remembered
from .probe import network_inputs, sigmas_of
from .warn import warn_caller


class BatchInvariant(nn.Module):
    """Calls a network on batches of the sizes given only, which were seen to give each sample the bits of a batch of 1.

    A batch of another size is cut into such, the largest first.
    """

    def __init__(self, network: nn.Module, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.sizes = network, tuple(sorted({1, *sizes}, reverse=True))

    @property
    def dtype(self) -> torch.dtype:
        return network_dtype(self.network)

    def forward(self, x: Tensor, *each: Tensor, **named: Tensor) -> Tensor:
        if len(x) in self.sizes:
            return self.network(x, *each, **named)
        parts, start = [], 0
        while start < len(x):
            size = next(size for size in self.sizes if size <= len(x) - start)
            part = slice(start, start + size)
            parts.append(self.network(x[part], *(t[part] for t in each), **{k: t[part] for k, t in named.items()}))
            start += size
        return torch.cat(parts)


def make_batch_invariant(denoiser: Denoiser, batch_size: int) -> None:
    """Replace a prepared denoiser's network by a `BatchInvariant` of it.

    Sizes are the powers of two up to ``batch_size``, and it; each is tried on random samples, of which the first, the
    middle and the last are compared with the same sample alone. Sizes that give other bits are not used: a warning says
    so, for one by one is slow.
    """
    sizes = sorted({batch_size, *(2**k for k in range(batch_size.bit_length()))} - {1})
    inputs = [t for t in network_inputs(denoiser, sigmas_of(denoiser, batch_size)) if t is not None]
    with own_modes(inputs[0].device):
        alone = {i: denoiser.model(*(t[i : i + 1] for t in inputs)) for i in {p for n in sizes for p in _places(n)}}
        good = tuple(n for n in sizes if _agrees(denoiser.model(*(t[:n] for t in inputs)), alone, n))
    if len(good) < len(sizes):
        others = ", ".join(str(n) for n in sizes if n not in good)
        warn_caller(
            f"batch_invariant: batches of {others} give other bits than a sample alone on {inputs[0].device}; "
            f"evaluating {max(good, default=1)} at a time",
            UserWarning,
        )
    denoiser.model = BatchInvariant(denoiser.model, good)
    if denoiser.remembered is not None:
        denoiser.remembered = Remembered(denoiser.model)


def _places(size: int) -> set[int]:
    return {0, size // 2, size - 1}


def _agrees(together: Tensor, alone: dict[int, Tensor], size: int) -> bool:
    return all(torch.equal(together[i : i + 1], alone[i]) for i in _places(size))
