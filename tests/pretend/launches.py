"""Launches that are no operations of torch: Triton's kernels, in its interpreter, and csrc's, as the C++ backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .clocks import Device, Recorded
from .tensors import OnDevice, tensors_in, unwrap


def install() -> None:
    """Before the kernels are imported, with TRITON_INTERPRET=1."""
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    execute, dot = executor.__call__, builder.create_dot
    executor.__call__ = lambda self, *args, **how: _launch(lambda *a, **h: execute(self, *a, **h), args, how)

    def dot_of_floats(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        """The interpreter's own multiplies the bit patterns of bfloat16."""
        return dot(self, _widened(interpreter, a), _widened(interpreter, b), *rest)

    builder.create_dot = dot_of_floats
    _replace_native()


def _widened(interpreter: Any, handle: Any) -> Any:
    import triton.language as tl

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _launch(kernel: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Which tensors a kernel writes is seen from their numbers."""
    given, device = tensors_in((args, kwargs)), Device.it
    if not all(isinstance(t, OnDevice) for t in given):
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
    host_args, host_kwargs = unwrap((args, kwargs))

    def call() -> None:
        with _disable_current_modes(), warnings.catch_warnings(action="ignore"):
            kernel(*host_args, **host_kwargs)

    def launch() -> None:
        with _disable_current_modes():
            before = [t.host.clone() for t in given]
            call()
            changed = [t for t, old in zip(given, before, strict=True) if not _same(t.host, old)]
        device.access(given, changed)

    if device.capturing is None:
        launch()
    else:
        device.capturing.append(Recorded(launch, [], [], []))


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _replace_native() -> None:
    """A row that cannot be carried out raises, as on a CPU, where CUDA's kernel marks its sample."""
    from engine import _native

    fields = [name for name in dir(_native.AdvanceCall) if not name.startswith("_")]

    def advance_cuda(call: Any, device: int, stream: int) -> None:
        assert (device, stream) == (0, Device.it.stream)
        copied = _native.AdvanceCall()  # the caller's is another row's soon
        for name in fields:
            setattr(copied, name, getattr(call, name))
        buffers = (copied.F, copied.G, copied.latents, copied.eps)
        reads = [copied.table, copied.base_row, copied.known, copied.seeds, *(each.address for each in buffers)]
        writes = [copied.x, copied.slots, copied.net_in.address, copied.c_noise, copied.bad_row, copied.guide_scale]
        _launch_at(lambda: _native.advance_cpu(copied, 1, "auto"), reads, writes)

    def normal_cuda(keys: int, counters: int, out: int, samples: int, elements: int, device: int, stream: int) -> None:
        if device != 0:
            raise RuntimeError("CUDA error: invalid device ordinal")
        assert stream == Device.it.stream
        _launch_at(lambda: _native.normal(keys, counters, out, samples, elements), [keys, counters], [out])

    _native.advance_cuda, _native.normal_cuda, _native.cuda_built = advance_cuda, normal_cuda, True


def _launch_at(call: Callable[[], None], reads: list[int], writes: list[int]) -> None:
    """Of kernels that take addresses."""
    device = Device.it
    written = device.at(writes)
    touched = [*device.at(reads), *written]
    if device.capturing is not None:
        device.capturing.append(Recorded(call, [], touched, written))
        return
    device.access(touched, written)
    call()
