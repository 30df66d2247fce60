"""Which layer of a network first gives infinity or NaN: what float16 does where an activation exceeds 65504."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def first_nonfinite(network: nn.Module) -> Iterator[list[str]]:
    """While this is open, a list that gets the names of layers whose output is not finite though their inputs are.

    The first one is where it began. A layer is a module that is called; what our residual blocks do within themselves
    has the block's name. It stops the device after every layer: for finding a fault, not for production.
    """
    found: list[str] = []

    def hook(name: str, module: nn.Module) -> Any:
        def check(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            if not _finite(output) and _finite((inputs, named)):
                found.append(f"layer {name} ({type(module).__name__})")

        return module.register_forward_hook(check, with_kwargs=True)

    handles = [hook(name, module) for name, module in network.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _finite(values: Any) -> bool:
    tensors = [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point()]
    return all(bool(torch.isfinite(t).all()) for t in tensors)
