"""torch.cuda of the pretended device: `install` puts it in torch's place, for the rest of the process."""

from __future__ import annotations

import ctypes
import gc
import itertools
import subprocess
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .clocks import Device, Recorded, join
from .tensors import CUDA, Pretended, tensors_in

_MEMORY = 8 << 30


class Stream:
    """Of torch.cuda. number: of one that is there already."""

    device, device_index, device_type = CUDA, 0, 1

    def __init__(self, device: Any = None, priority: int = 0, *, number: int | None = None) -> None:
        self.priority = priority
        self.cuda_stream = self.stream_id = next(Device.it.numbers) if number is None else number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)

    @property
    def clock(self) -> dict[int, int]:
        return Device.it.clock(self.cuda_stream)

    def wait_stream(self, other: Stream) -> None:
        join(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        join(self.clock, event.clock)

    def synchronize(self) -> None:
        Device.it.wait_for(self.clock, "Stream.synchronize")


class Event:
    """Of torch.cuda."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.clock: dict[int, int] = {}
        self.at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.clock, self.at = dict((stream or current_stream()).clock), time.perf_counter()

    def synchronize(self) -> None:
        Device.it.wait_for(self.clock, "Event.synchronize")

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) * 1e3


class CUDAGraph:
    """Of torch.cuda: it does again what this thread queued, on the memory of then."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.recorded: list[Recorded] = []

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise RuntimeError(f"Unknown capture error mode {capture_error_mode}")
        if Device.it.stream == 0:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        Device.it.local.recording = self.recorded

    def capture_end(self) -> None:
        Device.it.local.recording = None

    def replay(self) -> None:
        for each in self.recorded:
            made = [Device.it.memory_of(t) for t in each.results]
            Device.it.access([*each.touched, *made], [*each.written, *made])
            for to, found in zip(each.results, tensors_in(each.call()), strict=True):
                if to is not found:
                    to.copy_(found)


class Here(nullcontext[None]):
    """torch.cuda.device and device_of, where there is one device."""

    def __init__(self, _: Any) -> None:
        super().__init__()


def current_stream(device: Any = None) -> Stream:
    return Stream(number=Device.it.stream)


def set_stream(stream: Stream) -> None:
    Device.it.local.stream = stream.cuda_stream


def synchronize(device: Any = None) -> None:
    for stream in list(Device.it.clocks):
        Device.it.wait_for(Device.it.clock(stream), "synchronize")


def memory_allocated(device: Any = None) -> int:
    gc.collect()
    return Device.it.allocated()


def install() -> None:
    """From here on torch has a CUDA device. Without gradients: autograd asks the device itself for its streams."""
    Device.it, handles = Device(), itertools.count(1)
    properties = SimpleNamespace(name="pretended", total_memory=_MEMORY, multi_processor_count=4, major=9, minor=0)
    modes = {"default": 0, "warn": 1, "error": 2}
    fakes: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": Here,
        "device_of": Here,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "mem_get_info": lambda device=None: (_MEMORY - Device.it.allocated(), _MEMORY),
        "memory_allocated": memory_allocated,
        "memory_reserved": memory_allocated,
        "empty_cache": lambda: None,
        "synchronize": synchronize,
        "set_sync_debug_mode": lambda mode: setattr(Device.it, "sync_mode", modes[mode]),
        "_sleep": lambda cycles: None,
        "Stream": Stream,
        "Event": Event,
        "current_stream": current_stream,
        "default_stream": lambda device=None: Stream(number=0),
        "set_stream": set_stream,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": lambda: (0, next(handles)),
        "is_current_stream_capturing": lambda: Device.it.capturing is not None,
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    torch._C._host_emptyCache = lambda: None
    _register_guard()
    _replace_tensors()
    Pretended().__enter__()
    torch.set_grad_enabled(False)


def _register_guard() -> None:
    """Build guard.cpp and load it, for the rest of the process."""
    root, source = Path(torch.__file__).parent, Path(__file__).with_name("guard.cpp")
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{root}/include", f"-L{root}/lib", "-lc10"]
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays when its file has gone
        library = Path(folder) / "guard.so"
        subprocess.run(["g++", source, "-o", library, *flags], check=True)
        ctypes.CDLL(str(library))


def _replace_tensors() -> None:
    """What no dispatch mode sees: pinned memory, generators, and the modes themselves in other threads."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) copies where a mode sees it
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Tensor.data would lose a tensor's class
    empty, run, generator = torch.empty, threading.Thread.run, torch.Generator

    def pinned_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return Device.it.pin(made) if pin_memory else made

    def run_pretended(self: threading.Thread) -> None:
        with Pretended(), torch.no_grad():
            run(self)

    class Generator(generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls, "cpu")

    torch.empty, threading.Thread.run, torch.Generator = pinned_empty, run_pretended, Generator
    tolist = Tensor.tolist

    def tolist_of_what_arrived(self: Tensor) -> Any:
        Device.it.host_access([self], False)
        return tolist(self)

    Tensor.tolist = tolist_of_what_arrived
    Tensor.pin_memory = lambda self, device=None: Device.it.pin(self)
    Tensor.is_pinned = lambda self, device=None: Device.it.is_pinned(self)
