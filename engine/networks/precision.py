"""Which parts of a network run in half precision, and the cast that applies it."""

import torch
from torch import nn

from .layers import Conv2d, GroupNorm


def cast_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network in place to compute in ``dtype``, memory format channels_last; returns it.

    Our UNets keep the noise embedding and its linear layers in float32, as the published networks do: they are
    under 1% of the work, and c_noise does not survive bfloat16. Any other module is cast whole.
    """
    ours = [module for module in network.modules() if isinstance(module, Conv2d | GroupNorm)]
    if ours:
        for module in ours:
            module.to(dtype)
    else:
        network.to(dtype)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
