"""Samples of the shipped networks as once drawn: to the bit where the machine is known, near them anywhere."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import shipped
from ..denoiser import Denoiser
from ..engine import Engine
from ..files import atomic_path
from ..images import to_uint8
from ..networks import winograd
from ..provenance import code, processor
from ..samplers import edm
from .finding import Finding, name_of

FILE = Path(__file__).parent / "golden.json"
_SEEDS, _CLASSES, _STEPS = (0, 1, 2, 3), (1, 5, 7, 8), 18
# Mean difference of an image, in levels of 255. Measured over instruction sets from SSE to AVX-512: float32 0, float16
# 0.03, bfloat16 1.1; GPUs may multiply float32 with float16's precision. One convolution set to zero: 0.12 to 68.
_NEAR = {torch.float32: 0.1, torch.float16: 0.1, torch.bfloat16: 2.0}


def golden(model: str, denoiser: Denoiser, dtypes: tuple[torch.dtype, ...], device: torch.device) -> Iterator[Finding]:
    """The weights, then in each dtype four samples against the golden ones. model: a shipped name, or anything else."""
    entry = _entries().get(model) if model in shipped() else None
    if entry is None:
        known = ", ".join(_entries())
        yield Finding("golden samples", Path(model).name, f"none of this network; there are of: {known}", None)
        return
    same = weights_digest(denoiser) == entry["weights"]
    yield Finding("weights", model, "those that shipped" if same else "not those that shipped", same)
    for dtype in dtypes:
        images = _draw(denoiser, dtype, device)
        yield _near(entry, images, dtype, device)
        yield _bits(entry, images, dtype, device)


def record(model: str, denoiser: Denoiser, dtypes: tuple[torch.dtype, ...], device: torch.device) -> list[str]:
    """Add this machine's bits to `FILE`, and remove those that other code drew; what was added. A network that is not
    in it gets its images there, too.

    Raises ValueError for weights other than those of the file, and for samples that are not near its images.
    """
    entries = _entries()
    if model not in shipped():
        raise ValueError(f"model is {model!r}; only shipped networks have golden samples: {', '.join(shipped())}")
    digest = weights_digest(denoiser)
    if model not in entries:
        pixels = to_uint8(_draw(denoiser, torch.float32, device)).numpy().tobytes()
        entries[model] = {"weights": digest, "images": base64.b64encode(pixels).decode(), "bits": {}}
    entry = entries[model]
    if entry["weights"] != digest:
        raise ValueError(f"the weights of {model!r} are not those of {FILE.name}; remove its entry to record new ones")
    for dtype in dtypes:
        images = _draw(denoiser, dtype, device)
        near = _near(entry, images, dtype, device)
        if not near.passed:
            raise ValueError(f"{near.subject}: {near.outcome}; not recorded")
        entry["bits"].setdefault(machine(device), {})[name_of(dtype)] = _digest(images)
    entry["bits"] = {where: bits for where, bits in entry["bits"].items() if where.endswith(f"code {code()}")}
    with atomic_path(FILE) as temporary:
        temporary.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    return [f"{model}, {name_of(dtype)}, {machine(device)}" for dtype in dtypes]


def weights_digest(denoiser: Denoiser) -> str:
    """sha256 of all tensors by name, in float32."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def machine(device: torch.device) -> str:
    """What decides the bits of a network there; on a CPU tried by switching each: the processor, the instruction set
    torch and oneDNN use, torch's version, our code. Of threads there is always one: bits may depend on them."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        kind = f"{torch.cuda.get_device_name(device)} sm_{major}{minor}, cudnn {torch.backends.cudnn.version()}"
        return f"{kind}, torch {torch.__version__}, code {code()}"
    half = " bf16" if winograd.onednn_knows(torch.bfloat16) else ""
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}{half}, torch {torch.__version__}, code {code()}"


def _near(entry: dict[str, Any], images: Tensor, dtype: torch.dtype, device: torch.device) -> Finding:
    pixels = np.frombuffer(base64.b64decode(entry["images"]), np.uint8).reshape(images.shape)
    apart = (to_uint8(images).int() - torch.from_numpy(pixels.astype(np.int32))).abs().flatten(1).float()
    mean, allowed = apart.mean(1).max().item(), _NEAR[dtype]
    outcome = f"largest mean difference of an image {mean:.2g} of 255 levels; allowed {allowed:g}"
    return Finding("golden samples", f"{device.type}, network {name_of(dtype)}", outcome, mean <= allowed)


def _bits(entry: dict[str, Any], images: Tensor, dtype: torch.dtype, device: torch.device) -> Finding:
    what = ("golden samples, bits", f"{device.type}, network {name_of(dtype)}")
    known = entry["bits"].get(machine(device), {}).get(name_of(dtype))
    if known is None:
        return Finding(*what, f"no golden bits for {machine(device)}; `edm-engine verify --record` adds them", None)
    same = known == _digest(images)
    return Finding(*what, f"equal to the bit ({images.numel():,} values)" if same else "other bits", same)


def _draw(denoiser: Denoiser, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Four samples, float32 on the CPU."""
    engine = Engine(denoiser, dtype=dtype, device=device, sampler=edm(_STEPS))
    with _one_thread():
        return engine.sample(seeds=_SEEDS, class_labels=_CLASSES if denoiser.label_dim else None).cpu()


@contextmanager
def _one_thread() -> Iterator[None]:
    every = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(every)


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _entries() -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return entries
