"""What a network's half precision costs: each layer's error against float64, and what becomes of the images."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser, per_sample
from ..engine import Engine
from ..images import to_uint8
from ..networks.block import UNetBlock
from ..networks.precision import cast_network
from ..probe import some_labels
from ..samplers import edm

_SIGMAS = (0.02, 0.2, 1.0, 5.0, 40.0)


@dataclass
class Layer:
    """A layer's output over all noise levels. plain, prepared: root mean square error of torch in the same dtype and of
    the engine, of the exact output's size; worst: the engine's largest error, of that size; largest: activation."""

    name: str
    plain: float
    prepared: float
    worst: float
    largest: float


@dataclass(frozen=True)
class Images:
    """How far images of the same seeds are from those of a float64 network, over [-1, 1] and in levels of 255."""

    rms: float
    mean_levels: float
    most_levels: int


def layers(denoiser: Denoiser, dtype: torch.dtype, device: torch.device | str, images: Tensor) -> list[Layer]:
    """Every layer of the denoiser's network, in the order of calls, from images [N, C, *spatial] with noise of several
    levels; a residual block is one layer. Raises ValueError for a network that cannot be cast to float64."""
    networks = {
        "exact": cast_network(copy.deepcopy(denoiser.model).cpu(), torch.float64),
        "plain": cast_network(copy.deepcopy(denoiser.model).to(device), dtype),
        "prepared": Engine(denoiser, dtype=dtype, device=device).denoiser.model,
    }
    sums: dict[str, _Sums] = {}
    generator = torch.Generator().manual_seed(0)
    low, high = denoiser.sigma_min, denoiser.sigma_max
    for sigma in [s for s in _SIGMAS if low <= s <= high] or [min(max(1.0, low), high)]:
        x = images + sigma * torch.randn(images.shape, generator=generator, dtype=images.dtype)
        inputs = _inputs(denoiser, x, sigma, dtype)
        seen = {name: _outputs(network.eval(), inputs) for name, network in networks.items()}
        for layer, exact in seen["exact"].items():
            if all(layer in outputs for outputs in seen.values()):
                sums.setdefault(layer, _Sums()).add(exact, seen["plain"][layer], seen["prepared"][layer])
    return [found.as_layer(name) for name, found in sums.items()]


def samples(denoiser: Denoiser, dtype: torch.dtype, device: torch.device | str, count: int, steps: int) -> Images:
    """Images of seeds 0, 1, ... by Heun's method, with the network in ``dtype`` against float64."""
    options: dict[str, Any] = {"seeds": range(count), "sampler": edm(steps)}
    options["class_labels"] = some_labels(denoiser, count)
    half, exact = (
        Engine(denoiser, dtype=kind, device=device, output_dtype=torch.float64).sample(**options).cpu()
        for kind in (dtype, torch.float64)
    )
    levels = (to_uint8(half).int() - to_uint8(exact).int()).abs()
    rms = (half - exact).square().mean().sqrt().item()
    return Images(rms, levels.double().mean().item(), int(levels.max()))


@dataclass
class _Sums:
    exact: float = 0.0
    plain: float = 0.0
    prepared: float = 0.0
    worst: float = 0.0
    largest: float = 0.0
    count: int = field(default=0)

    def add(self, exact: Tensor, plain: Tensor, prepared: Tensor) -> None:
        self.exact += exact.square().sum().item()
        self.plain += (plain - exact).square().sum().item()
        self.prepared += (prepared - exact).square().sum().item()
        self.worst = max(self.worst, (prepared - exact).abs().max().item())
        self.largest = max(self.largest, exact.abs().max().item())
        self.count += exact.numel()

    def as_layer(self, name: str) -> Layer:
        size = self.exact or 1.0
        worst = self.worst / (size / self.count) ** 0.5
        return Layer(name, (self.plain / size) ** 0.5, (self.prepared / size) ** 0.5, worst, self.largest)


def _inputs(denoiser: Denoiser, x: Tensor, sigma: float, dtype: torch.dtype) -> list[Tensor]:
    """What the network is called with at a noise level; x as ``dtype`` holds it, so that all begin with the same."""
    _, _, c_in, c_noise = denoiser.preconditioning.coefficients(torch.full([len(x)], sigma))
    net_in = (per_sample(c_in, x) * x).to(dtype)
    padding = net_in.new_zeros(len(x), denoiser.net_channels - x.shape[1], *x.shape[2:])
    net_in = torch.cat([net_in, padding], dim=1)
    labels = some_labels(denoiser, len(x))
    return [net_in, c_noise.to(torch.float32), *([] if labels is None else [labels])]


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Each layer's output, float64 on the CPU; of layers called twice, the last."""
    first = next((p for p in network.parameters() if p.dim() > 1), torch.zeros(()))
    dtype = getattr(network, "dtype", first.dtype)
    layout = torch.channels_last if inputs[0].dim() == 4 else torch.contiguous_format
    x = inputs[0].to(first.device, dtype).contiguous(memory_format=layout)
    with _recorded(network) as outputs:
        network(x, *(t.to(first.device) for t in inputs[1:]))
    return outputs


@contextmanager
def _recorded(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    outputs: dict[str, Tensor] = {}
    inner = {id(m) for block in network.modules() if isinstance(block, UNetBlock) for m in block.modules()}
    blocks = {id(m) for m in network.modules() if isinstance(m, UNetBlock)}

    def hook(name: str, module: nn.Module) -> Any:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                outputs[name or "output"] = output.detach().to("cpu", torch.float64)

        return module.register_forward_hook(keep)

    seen = [(n, m) for n, m in network.named_modules() if id(m) not in inner or id(m) in blocks]
    handles = [hook(name, module) for name, module in seen]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
