"""Triton kernels compiled ahead of time, without a GPU, as a launch asks: constants, alignments, options."""

import inspect
import re
import subprocess
from collections import Counter
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
}
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


def compiled(kernel, launch, sm, cache):
    """The kernel specialised as a launch would: 1 becomes a constant, multiples of 16 are known as such."""
    names = kernel.arg_names
    options = {name: value for name, value in launch.kwargs.items() if name not in names}
    given = inspect.signature(kernel.fn).bind(
        *launch.args, **{n: launch.kwargs[n] for n in launch.kwargs if n in names}
    )
    signature, constants, attributes = {}, {}, {}
    for index, (name, value) in enumerate(given.arguments.items()):
        parameter = kernel.params[index]
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
            aligned = value.data_ptr() % 16 == 0
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[name], constants[(index,)], aligned = "constexpr", value, False
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def accesses(ptx):
    return Counter(re.findall(r"\b(?:ld|st)\.(?:global|shared|local)[\w.:]*", ptx))


def resources(cubin, folder):
    """Registers, and bytes of stack and local memory (spills), of a compiled kernel."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}
