"""What one network evaluation costs, counted on tensors without data: nothing is computed, however large the network.

FLOPs are two a multiply-add, of convolutions, matrix products and attention. Activations are the bytes of all tensors
alive after each operation, at their most; what a kernel uses inside itself and what an allocator keeps is not seen.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from .denoiser import Denoiser
from .networks.precision import cast_network


@dataclass(frozen=True)
class Cost:
    """Of a network in one dtype. flops and activation_bytes: of one image in one evaluation, by batch proportional."""

    parameters: int
    flops: int
    weight_bytes: int
    activation_bytes: int

    def memory(self, batch: int) -> int:
        """Bytes of weights and activations; the sampler's own state comes on top."""
        return self.weight_bytes + batch * self.activation_bytes


def measure(denoiser: Denoiser, dtype: torch.dtype = torch.float32) -> Cost:
    """The cost of one evaluation with the network in ``dtype``; the denoiser itself is left alone."""
    network = cast_network(_without_data(denoiser.model), dtype).eval()
    x = torch.empty(1, denoiser.net_channels, *denoiser.img_shape[1:], dtype=dtype, device="meta")
    labels = (torch.empty(1, denoiser.label_dim, device="meta"),) if denoiser.label_dim else ()
    inputs = (x, torch.empty(1, device="meta"), *labels)
    tensors = [*network.parameters(), *network.buffers()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    with torch.no_grad(), _NoAttentionMatrix():
        peak = peak_bytes(lambda: network(*inputs), [*tensors, *inputs])
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        flops=counter.get_total_flops(),
        weight_bytes=sum(t.nbytes for t in tensors),
        activation_bytes=peak + x.nbytes,
    )


def peak_bytes(call: Callable[[], object], given: Iterable[Tensor]) -> int:
    """The most bytes of tensors that a call holds at once, without those of ``given``; on any device."""
    with _Alive(given) as alive:
        call()
    return alive.peak


def _without_data(network: nn.Module) -> nn.Module:
    """A copy on the meta device; the weights are not copied on the way."""
    parameters = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in network.parameters()}
    buffers = {id(b): b.to("meta") for b in network.buffers()}
    return copy.deepcopy(network, parameters | buffers)


class _Alive(TorchDispatchMode):
    """Bytes of the storages that are alive, without those of ``given``."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.given = WeakIdKeyDictionary({t.untyped_storage(): 0 for t in given})
        self.alive = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.given:
                self.alive[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


class _NoAttentionMatrix(TorchFunctionMode):
    """Attention as its fused kernels hold it: without the matrix of weights, which it makes of meta tensors."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))
