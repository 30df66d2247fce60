"""Which operation of a network keeps it from being captured: one that waits for the device, or brings data from the
host.

A capture that meets one fails somewhere inside CUDA, and not every version of torch is whole afterwards; so a network
is evaluated once under this watch before it is captured.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_BY_MASK = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index")
_FRIENDLY = {"aten::_local_scalar_dense": "Tensor.item(), float(), int(), bool() or an if on a tensor"}


class CaptureError(RuntimeError):
    """A network that cannot be captured; the message names the operation and the layer."""


def require_capturable(call: Callable[[], object], networks: nn.Module) -> None:
    """Evaluate once. Raises `CaptureError` naming the first operation that no capture can hold, and its layer."""
    with _layers(networks) as entered, _Watch(entered) as watch:
        call()
    if watch.found:
        raise CaptureError(f"the network cannot be captured in a CUDA graph: {watch.found}; allowed: graph='off'")


@contextmanager
def _layers(networks: nn.Module) -> Iterator[list[str]]:
    """While this is open, a list that holds the names of the modules that this thread evaluates, the innermost last."""
    entered: list[str] = []
    handles = []
    for name, module in networks.named_modules():
        enter, leave = _hooks(entered, f"{name or 'the network'} ({type(module).__name__})", threading.get_ident())
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _hooks(entered: list[str], title: str, thread: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Before and after a module's forward. Both return None: torch takes anything else for new inputs or outputs, in
    whichever thread evaluates the module meanwhile.
    """

    def enter(*_: object) -> None:
        if threading.get_ident() == thread:
            entered.append(title)

    def leave(*_: object) -> None:
        if threading.get_ident() == thread and entered:
            entered.pop()

    return enter, leave


class _Watch(TorchDispatchMode):
    """Notes the first operation that waits for the device or moves data between it and the host."""

    def __init__(self, entered: list[str]) -> None:
        super().__init__()
        self.entered, self.found = entered, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reason = _reason(func, args, result)
        if reason and not self.found:
            name = func.name().partition(".")[0]
            where = f" in {self.entered[-1]}" if self.entered else ""
            self.found = f"{name}{where} {reason}" + (f" ({_FRIENDLY[name]})" if name in _FRIENDLY else "")
        return result


def _reason(func: Any, args: Any, result: Any) -> str:
    tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
    name = func.name().partition(".")[0]
    if _WAITS & set(func.tags) and not (name in _BY_MASK and not any(_is_mask(t) for t in tensors[1:])):
        return "waits for what the device computes"
    if name == "aten::lift_fresh" and isinstance(result, Tensor) and result.device.type != "cpu":
        return "brings data from the host (torch.tensor)"
    kinds = {t.device.type for t in (*tensors, *tree_leaves(result)) if isinstance(t, Tensor)}
    if name in ("aten::_to_copy", "aten::copy_", "aten::copy") and len(kinds) > 1:
        return f"moves data between {' and '.join(sorted(kinds))}"
    return ""


def _is_mask(t: Tensor) -> bool:
    return t.dtype in (torch.bool, torch.uint8)
