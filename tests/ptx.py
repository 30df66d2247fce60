"""Triton kernels compiled ahead of time, without a GPU, as a launch asks: constants, alignments, options."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Recorder:
    """Stands in for a kernel: ``kernel[grid](*args, **kwargs)`` is kept instead of launched."""

    def __getitem__(self, grid):
        self.grid = grid
        return self

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


def launches(monkeypatch, modules, call):
    """What call() launches, by the kernels' names: the last of each."""
    recorders = {}
    for module in modules:
        for kernel in [kernel for kernel in vars(module) if re.fullmatch(r"_\w+_kernel", kernel)]:
            recorders[kernel] = Recorder()
            monkeypatch.setattr(module, kernel, recorders[kernel])
    call()
    monkeypatch.undo()
    return {name: recorder for name, recorder in recorders.items() if hasattr(recorder, "args")}


class Driver:
    """A Triton driver for a device of compute capability ``sm`` that is not there: what is asked before compiling."""

    def __init__(self, sm):
        self.sm = sm

    def get_current_target(self):
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self):
        return self.sm  # a kernel keeps what it compiled by device

    def get_current_stream(self, device):
        return 0


def compiled(kernel, launch, sm, cache):
    """What the launch would compile there, specialised for its arguments and options by Triton itself."""
    driver = triton.runtime.driver
    before = driver._active  # to ask for driver.active would look for a device
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        driver.set_active(Driver(sm))
        try:
            return kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.kwargs)
        finally:
            driver._active = before


def accesses(ptx):
    return Counter(re.findall(r"\b(?:ld|st)\.(?:global|shared|local)[\w.:]*", ptx))


def resources(cubin, folder):
    """Registers, and bytes of stack and local memory (spills), of a compiled kernel."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}
