"""Everything that `edm-engine verify` compares, in the order in which it prints."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import noise
from ..backends import BACKENDS, REFERENCE, Backend
from ..denoiser import Denoiser
from ..engine import Engine
from ..graphs import Mode
from ..graphs.capture import CAPTURES
from ..plan import Sampler
from ..probe import some_labels
from ..samplers import dpmpp_2m, edm
from .cases import every_case, outcomes
from .compare import Comparison, compare
from .finding import Finding, name_of
from .golden import golden
from .normals import normal_comparison, philox_comparison

_SEEDS = (0, 1, 2**32, 2**63, 2**64 - 1)
_SAMPLERS: tuple[Sampler, ...] = (edm(4, S_churn=2, S_noise=1.003), dpmpp_2m(4))


@dataclass(frozen=True)
class Request:
    """What to verify: a network by its shipped name or file, in these dtypes, on these devices, with these backends.

    named: whether the backends were asked for by name; then one that cannot run is a failure.
    """

    model: str
    denoiser: Denoiser
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]
    backends: tuple[Backend, ...]
    named: bool = False

    @classmethod
    def check(
        cls, model: str, denoiser: Denoiser, dtypes: Sequence[torch.dtype], backend: str = "all", device: str = "all"
    ) -> "Request":
        """backend, device: a name, or "all" that can run here. Raises ValueError for other names."""
        backends = tuple(b for b in BACKENDS if backend in ("all", b.name))
        devices = [torch.device("cpu"), *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]
        chosen = tuple(d for d in devices if device in ("all", d.type))
        if not backends:
            raise ValueError(f"backend is {backend!r}; allowed: all, {', '.join(b.name for b in BACKENDS)}")
        if not chosen:
            raise ValueError(f"device is {device!r}; allowed here: all, {', '.join(d.type for d in devices)}")
        return cls(model, denoiser, tuple(dtypes), chosen, backends, backend != "all")


def verify(request: Request) -> Iterator[Finding]:
    """Every finding, as soon as it is made."""
    found = philox_comparison()
    yield Finding("Philox", "published answers", str(found), found.equal)
    for backend in request.backends:
        yield from _backend(request, backend)
    for device in request.devices:
        for dtype in request.dtypes:
            yield _attempt(captured, request.denoiser, dtype, device)
            yield _attempt(batches, request.denoiser, dtype, device)
        yield from golden(request.model, request.denoiser, request.dtypes, device)


def _backend(request: Request, backend: Backend) -> Iterator[Finding]:
    """A backend's normals, its `advance` with networks of every dtype, and its samples."""
    can = [d for d in request.devices if not backend.not_supported_reasons(d, torch.float64)]
    if not can:
        yield Finding("backend", backend.name, f"cannot run: {why_not(backend)}", False if request.named else None)
    for device in can:
        yield _attempt(normals, backend, device)
        if backend is REFERENCE and device.type == "cpu":
            continue  # what the others are compared with
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            yield _attempt(advance, backend, dtype, device)
        if backend is not REFERENCE:
            for dtype in request.dtypes:
                yield _attempt(samples, request.denoiser, backend, dtype, device)


def _attempt(check: Callable[..., Finding], *of: object) -> Finding:
    """The finding of a check; what it raises is one too: a kernel or a driver that fails is what it is for."""
    try:
        return check(*of)
    except Exception as error:
        subject = ", ".join(getattr(each, "name", str(each)) for each in of if not isinstance(each, Denoiser))
        return Finding(check.__name__, subject, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", False)


def why_not(backend: Backend) -> str:
    """Why a backend cannot run here, as seen from the device that lacks the least."""
    reasons = [backend.not_supported_reasons(torch.device(d), torch.float64) for d in ("cuda", "cpu")]
    return "; ".join(sorted(reasons, key=len)[0])


def normals(backend: Backend, device: torch.device) -> Finding:
    """The backend's standard normals against NumPy's."""
    if backend.name not in noise.BACKENDS:
        return Finding("noise", f"{backend.name} on {device}", "cannot run: its normals are in its fused step", None)
    if backend.name == "triton" and device.type == "cpu":
        return Finding("noise", f"triton on {device}", "cannot run: its launcher needs a CUDA device", None)
    found = normal_comparison(backend.name, device)
    return Finding("noise", f"{backend.name} on {device}", str(found), found.equal)


def advance(backend: Backend, dtype: torch.dtype, device: torch.device) -> Finding:
    """The fused step against the reference on the CPU: all opcodes, both state dtypes and layouts, guidance."""
    subject = f"{backend.name} on {device}, network {name_of(dtype)}"
    reasons = backend.not_supported_reasons(device, torch.float64, dtype)
    if reasons:
        return Finding("advance", subject, f"cannot run: {'; '.join(reasons)}", None)
    found = [compare(*pair) for case in every_case(dtype) for _, *pair in outcomes(case, backend, device)]
    total = sum(found, start=Comparison())
    return Finding("advance", subject, str(total), total.equal)


def samples(denoiser: Denoiser, backend: Backend, dtype: torch.dtype, device: torch.device) -> Finding:
    """Whole samples of the network against those of the reference backend on the same device."""
    total = Comparison()
    for sampler in _SAMPLERS:
        drawn = [_draw(denoiser, sampler, dtype, device, name) for name in (backend.name, REFERENCE.name)]
        total += compare(drawn[0], drawn[1])
    return Finding("samples", f"{backend.name} on {device}, network {name_of(dtype)}", str(total), total.equal)


def captured(denoiser: Denoiser, dtype: torch.dtype, device: torch.device) -> Finding:
    """Loops and single steps replayed from CUDA graphs against the same run eagerly, churned and not."""
    subject = f"{device}, network {name_of(dtype)}"
    if device.type not in CAPTURES:
        return Finding("captured", subject, "cannot run: CUDA graphs need a CUDA device", None)
    total = Comparison()
    for sampler in _SAMPLERS:
        eager = _draw(denoiser, sampler, dtype, device, "auto", graph="off")
        for graph in ("loop", "step"):
            total += compare(_draw(denoiser, sampler, dtype, device, "auto", graph=graph, times=2), eager)
    return Finding("captured", subject, str(total), total.equal)


def batches(denoiser: Denoiser, dtype: torch.dtype, device: torch.device, promised: bool = False) -> Finding:
    """Samples one by one against the same in one batch; without a promise a difference is told, and no failure."""
    drawn = [_draw(denoiser, _SAMPLERS[0], dtype, device, "auto", batch) for batch in (1, len(_SEEDS))]
    found = compare(drawn[0], drawn[1])
    what = ("batch 1 and 5", f"{device}, network {name_of(dtype)}")
    if found.equal or promised:
        return Finding(*what, str(found), found.equal)
    return Finding(*what, f"{found}; not promised (README, Seeds)", None)


def _draw(
    denoiser: Denoiser,
    sampler: Sampler,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
    batch_size: int = len(_SEEDS),
    graph: Mode = "off",
    times: int = 1,
) -> Tensor:
    """Samples in the state's own float64; those of the last of several times, of which a graph's first warms it up."""
    engine = Engine(
        denoiser,
        dtype=dtype,
        device=device,
        backend=backend,
        batch_size=batch_size,
        output_dtype=torch.float64,
        graph=graph,
    )
    labels = None if denoiser.labels_are_classes else some_labels(denoiser, len(_SEEDS))
    drawn = [engine.sample(seeds=_SEEDS, class_labels=labels, sampler=sampler) for _ in range(times)]
    return drawn[-1].cpu()
