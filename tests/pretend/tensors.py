"""Tensors on the pretended device, and the rules by which a CUDA device takes operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .clocks import Device, Memory, Recorded

CUDA = torch.device("cuda", 0)
_WAITS = ("_local_scalar_dense", "equal", "nonzero", "_unique2", "masked_select", "is_nonzero")
_BY_INDEX = ("index", "index_put_", "_index_put_impl_", "index_put", "_unsafe_index")  # on the host or the device
_COPIES = ("_to_copy", "copy_", "copy")


class OnDevice(Tensor):
    """host: the CPU tensor that holds its numbers; memory: what it shares with its views."""

    host: Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, host: Tensor, memory: Memory) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=CUDA
        )
        made.host, made.memory = host, memory
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return perform(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        self.memory.recorded.add(stream.cuda_stream)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = self.detach().clone()
            parameter = getattr(self, "_is_param", False)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if parameter else made
        return memo[id(self)]


class Pretended(TorchDispatchMode):
    """Sends to `perform` what makes tensors on the device of none that are there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return perform(func, args, kwargs or {})


def mapped(change: Callable[[Any], Any], given: Any) -> Any:
    """With every leaf of nested lists, tuples and dicts changed. torch's own tree_map, made for trees of any kind, took
    a third of the time of everything done here.
    """
    if isinstance(given, list | tuple):
        inside = [mapped(change, each) for each in given]
        return type(given)(*inside) if hasattr(given, "_fields") else type(given)(inside)
    if isinstance(given, dict):
        return {key: mapped(change, each) for key, each in given.items()}
    return change(given)


def unwrap(given: Any) -> Any:
    """With the CPU's tensors in place of the device's."""
    return mapped(lambda t: t.host if isinstance(t, OnDevice) else t, given)


def tensors_in(given: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(lambda t: found.append(t) if isinstance(t, Tensor) else None, given)
    return found


def perform(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation where its arguments say: as a CPU does, or as a CUDA device would. Raises what torch raises."""
    name, device = func.name().partition(".")[0].removeprefix("aten::"), Device.it
    tensors = tensors_in((args, kwargs))
    there = any(isinstance(t, OnDevice) for t in tensors)
    asked = kwargs.get("device")
    on_device = there if asked is None else torch.device(asked).type == "cuda"
    if not there and not on_device:
        written = tensors_in(_written(func, args, kwargs))
        device.host_access(written, True)
        device.host_access([t for t in tensors if all(t is not w for w in written)], False)
        return func(*args, **kwargs)
    if asked is not None:
        if on_device and torch.device(asked).index not in (None, 0):
            raise RuntimeError("CUDA error: invalid device ordinal")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif name not in (*_COPIES, *_BY_INDEX) and any(not isinstance(t, OnDevice) and t.dim() for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cpu and cuda:0")
    if name == "cudnn_convolution":
        (x, weight, padding, stride, dilation, groups), kwargs = args[:6], {}
        func, args = (
            torch.ops.aten.convolution.default,
            (x, weight, None, stride, padding, dilation, False, [0, 0], groups),
        )
    if name == "cudnn_convolution_transpose":
        (x, weight, padding, more, stride, dilation, groups), kwargs = args[:7], {}
        func, args = (
            torch.ops.aten.convolution.default,
            (x, weight, None, stride, padding, dilation, True, more, groups),
        )
    if not _waits(name, args, kwargs, tensors, on_device):
        return _run(func, args, kwargs, on_device)
    device.require_waiting(name)
    result = _run(func, args, kwargs, on_device)
    device.wait_for(device.clock(device.stream), name)
    return result


def _waits(name: str, args: Any, kwargs: Any, tensors: list[Tensor], on_device: bool) -> bool:
    """Whether the host waits for the device, as it does for what is not pinned and for numbers it asks to see."""
    if name in _BY_INDEX:
        return any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
    if name in ("_to_copy", "copy_"):
        ends = args[:2] if name == "copy_" else args[:1]
        crosses = {isinstance(t, OnDevice) for t in ends} | ({on_device} if name == "_to_copy" else set())
        goes_on = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        pinned = [Device.it.is_pinned(t) for t in ends if not isinstance(t, OnDevice)]
        return len(crosses) > 1 and not (goes_on and pinned == [True])
    return name in _WAITS


def _run(func: Any, args: Any, kwargs: Any, on_device: bool) -> Any:
    """Do it on the CPU's tensors, or note it down where a graph is captured."""
    device, tensors = Device.it, tensors_in((args, kwargs))
    known = {id(t.host if isinstance(t, OnDevice) else t): t for t in tensors}
    host_args, host_kwargs = unwrap((args, kwargs))
    written = _written(func, args, kwargs)
    is_view = not written and any(each.alias_info is not None for each in func._schema.returns)
    if device.capturing is None or is_view:
        if not is_view:
            device.access(tensors, tensors_in(written))
        result = func(*host_args, **host_kwargs)
    else:
        result = unwrap(written) if written else _room_for(func, host_args, host_kwargs)
        result = result[0] if len(written) == 1 else result
        call = lambda: func(*host_args, **host_kwargs)  # noqa: E731
        device.capturing.append(Recorded(call, tensors_in(result), tensors, tensors_in(written)))

    def wrap(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if id(t) not in known:
            return OnDevice(t, device.memory_of(t)) if on_device else t
        if known[id(t)].shape != t.shape:
            raise NotImplementedError(f"{func} changes a shape in place")
        return known[id(t)]

    return mapped(wrap, result)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation changes."""
    return [kwargs[name] if name in kwargs else args[at] for at, name in _changes(func)]


@cache
def _changes(func: Any) -> list[tuple[int, str]]:
    """The places and names of the arguments that an operation changes, by its schema."""
    arguments = enumerate(func._schema.arguments)
    return [(at, each.name) for at, each in arguments if each.alias_info is not None and each.alias_info.is_write]


def _room_for(func: Any, args: Any, kwargs: Any) -> Any:
    """Memory for an operation's results, of numbers that nobody should read. The operation itself says how they lie: on
    meta tensors torch decomposes some, which takes a hundred times as long.
    """

    def unread(t: Any) -> Any:
        return t.fill_(torch.nan if t.dtype.is_floating_point else 0) if isinstance(t, Tensor) else t

    return mapped(unread, func(*args, **kwargs))
