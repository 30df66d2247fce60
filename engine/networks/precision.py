"""Which parts of a network run in half precision, and the cast that applies it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .layers import Conv2d, GroupNorm


def cast_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network in place to compute in ``dtype``, memory format channels_last; returns it.

    Our UNets keep the noise embedding and its linear layers in float32 (float64 for a float64 network), as the
    published networks do: they are under 1% of the work, and c_noise does not survive bfloat16. Any other module is
    cast whole.
    """
    for module, target in _targets(network, dtype):
        module.to(target)
    # What Module.to(memory_format=...) does, which refuses weights of five dimensions. Not contiguous(): where one
    # pixel or channel makes both layouts the same it leaves the strides, and by them torch chooses convolutions.
    network._apply(lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t)
    return network


def is_cast(network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `cast_network` would leave every dtype as it is."""
    return all(
        tensor.dtype == target or not tensor.is_floating_point()
        for module, target in _targets(network, dtype)
        for tensor in _own_tensors(module)
    )


def _targets(network: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, torch.dtype]]:
    """Modules that hold tensors, and the dtype each is to have."""
    ours = any(isinstance(module, Conv2d | GroupNorm) for module in network.modules())
    careful = torch.promote_types(dtype, torch.float32) if ours else dtype
    for module in network.modules():
        if _own_tensors(module):
            yield module, dtype if isinstance(module, Conv2d | GroupNorm) else careful


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
