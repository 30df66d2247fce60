"""``sample`` and ``Engine``: from seeds to images."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from . import loop
from .backends import select
from .denoiser import Denoiser
from .job import Job, Labels, Seeds
from .networks.precision import cast_network, is_cast
from .plan import Plan
from .samplers import EDMSampler, InversionSampler, Sampler, edm
from .state import State

_NETWORK_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATE_DTYPES = (torch.float64, torch.float32)
_DEFAULT_BATCH = 64


class NonFiniteError(ArithmeticError):
    """A sample became infinite or NaN; the message names its seed, the row and the network's dtype."""


class Engine:
    """A denoiser prepared for repeated sampling: moved and cast once.

    Parameters
    ----------
    denoiser: `Denoiser`; the engine works on a copy, which shares its tensors if neither dtype nor device changes.
    sampler: default of `sample`; ``engine.samplers.edm()`` if None.
    dtype: the network's dtype; None keeps the denoiser's own.
    state_dtype: the solver's, float64 or float32. output_dtype: of the images returned.
    backend: "auto" or a name from `engine.backends`. device: None keeps the denoiser's own.
    batch_size: samples evaluated together at most; None means 64.
    on_nonfinite: what to do when a sample becomes infinite or NaN: "raise" `NonFiniteError`, or "rerun" that sample
    alone with a float32 network (and raise if it happens again, or if the network is no half precision one).

    Raises ValueError naming the argument, what was given and what is allowed.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sampler: Sampler | None = None,
        dtype: torch.dtype | None = None,
        state_dtype: torch.dtype = torch.float64,
        output_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        on_nonfinite: Literal["raise", "rerun"] = "raise",
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"denoiser is a {type(denoiser).__name__}; allowed: an engine.Denoiser")
        _require_one_of("dtype", dtype or denoiser.dtype, _NETWORK_DTYPES)
        _require_one_of("state_dtype", state_dtype, _STATE_DTYPES)
        if not (isinstance(output_dtype, torch.dtype) and output_dtype.is_floating_point):
            raise ValueError(f"output_dtype is {output_dtype}; allowed: a floating dtype (engine.to_uint8 makes bytes)")
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"batch_size is {batch_size}; allowed: an integer from 1, or None")
        _require_one_of("on_nonfinite", on_nonfinite, ("raise", "rerun"))
        self.sampler = sampler or edm()
        self.device = _device(device) if device is not None else _device_of(denoiser)
        self.backend = select(backend, self.device, state_dtype, dtype or denoiser.dtype)
        self.state_dtype, self.output_dtype = state_dtype, output_dtype
        self.batch_size = batch_size or _DEFAULT_BATCH
        self.denoiser = _prepare(denoiser, dtype or denoiser.dtype, self.device)
        self.on_nonfinite = on_nonfinite
        self._source = denoiser  # what a rerun in float32 starts from

    def sample(
        self,
        *,
        seeds: Seeds | None = None,
        latents: Tensor | None = None,
        noise: str | Tensor = "philox",
        class_labels: Labels = None,
        sampler: Sampler | None = None,
        image: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw one image a seed: [N, C, *spatial] in ``output_dtype`` on the engine's device. See `engine.sample`."""
        batches = list(self.stream(
            seeds=seeds, latents=latents, noise=noise, class_labels=class_labels, sampler=sampler, image=image,
            progress=progress,
        ))  # fmt: skip
        return torch.cat([images for _, images in batches])

    def stream(
        self,
        *,
        seeds: Seeds | None = None,
        latents: Tensor | None = None,
        noise: str | Tensor = "philox",
        class_labels: Labels = None,
        sampler: Sampler | None = None,
        image: Tensor | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Like `sample`, batch by batch: yields (where the images stand in what was asked for, images).

        The whole job is checked by this call; the work is done as the iterator is read.
        """
        sampler = self.sampler if sampler is None else sampler
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler is {sampler!r}; allowed: an engine.Sampler, such as engine.samplers.edm()")
        plan = Plan(sampler, self.denoiser.preconditioning)
        job = Job.check(self.denoiser, plan, seeds, latents, noise, class_labels, self.device, image)
        return self._stream(plan, job.batches(self.batch_size), progress)

    def _stream(self, plan: Plan, batches: list[Job], progress: bool) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        with tqdm(total=len(batches) * plan.nfe, unit="eval", desc="sampling", disable=not progress) as bar:
            for batch in batches:
                with torch.no_grad():
                    images = self._run(plan, batch, lambda: bar.update() and None).to(self.output_dtype)
                yield batch.positions, images

    def _run(self, plan: Plan, job: Job, tick: Callable[[], None]) -> Tensor:
        """All samples of a job in one batch; the solver's final state."""
        state = State.allocate(
            torch.tensor(plan.table, device=self.device),
            plan.slots,
            job.noise_on(self.device),
            torch.zeros(len(job.positions), dtype=torch.int64, device=self.device),
            state_dtype=self.state_dtype,
            net_dtype=self.denoiser.dtype,
            net_channels=self.denoiser.net_channels,
        )
        labels = None if job.labels is None else job.labels.to(self.device)
        loop.run(lambda x, c: self.denoiser.call_network(x, c, labels), state, plan.nfe, self.backend, tick)
        broken = [sample for sample, row in enumerate(state.bad_row.tolist()) if row >= 0]
        if broken:
            state.x[broken] = self._rerun(plan, job, broken, state.bad_row)
        return state.x

    def _rerun(self, plan: Plan, job: Job, broken: list[int], bad_row: Tensor) -> Tensor:
        """The samples that did not stay finite, each alone in float32, if that was asked for."""
        first = broken[0]
        what = (
            f"{job.name(first)}{f' (and {len(broken) - 1} more)' if len(broken) > 1 else ''} became non-finite at row "
            f"{int(bad_row[first])} of the plan; network dtype {self.denoiser.dtype}, state dtype {self.state_dtype}"
        )
        if self.on_nonfinite == "raise" or self.denoiser.dtype not in (torch.float16, torch.bfloat16):
            raise NonFiniteError(what)
        warnings.warn(f"{what}; run again in float32", RuntimeWarning, stacklevel=4)
        careful = Engine(
            self._source,
            dtype=torch.float32,
            state_dtype=self.state_dtype,
            backend=self.backend.name,
            device=self.device,
        )
        return torch.cat([careful._run(plan, job.take([sample]), lambda: None) for sample in broken])


def sample(
    denoiser: Denoiser,
    *,
    seeds: Seeds | None = None,
    latents: Tensor | None = None,
    noise: str | Tensor = "philox",
    class_labels: Labels = None,
    sampler: Sampler | None = None,
    image: Tensor | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    state_dtype: torch.dtype = torch.float64,
    output_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    device: torch.device | str | None = None,
    progress: bool = False,
    on_nonfinite: Literal["raise", "rerun"] = "raise",
) -> Tensor:
    """Draw images from a denoiser, one a seed: [N, C, *spatial], in ``output_dtype``, on ``device``.

    seeds: N distinct integers in [0, 2**64). latents: instead of the seeds' own, unit variance [N, C, *spatial]
    (scaled by sigma_0 s_0 inside). noise: "philox" (each seed's own stream), "torch" or "edm2" (the streams of the
    published EDM and EDM2 code, seed for seed on the same kind of device), or a tensor [draws, N, C, *spatial]; draw i
    is used by step i, whether or not that step churns. class_labels: an int, N ints, or one-hot/soft [N, label_dim];
    None lets each seed draw its class (conditional networks). image: start from [N, C, *spatial] with noise added
    instead of from noise alone; the sampler's sigma_max says how much. progress: a bar over evaluations on stderr.
    The other arguments are those of `Engine`, which is the better choice for repeated calls.

    Raises ValueError for a bad argument before any work, `NonFiniteError` if a sample did not stay finite.
    """
    engine = Engine(
        denoiser,
        sampler=sampler,
        dtype=dtype,
        state_dtype=state_dtype,
        output_dtype=output_dtype,
        backend=backend,
        device=device,
        batch_size=batch_size,
        on_nonfinite=on_nonfinite,
    )
    return engine.sample(
        seeds=seeds, latents=latents, noise=noise, class_labels=class_labels, image=image, progress=progress
    )


def invert(
    denoiser: Denoiser,
    images: Tensor,
    *,
    class_labels: Labels = None,
    sampler: EDMSampler | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """The latents [N, C, *spatial], unit variance, from which a deterministic sampler draws these images again.

    It solves the probability-flow ODE backwards over the sampler's own noise levels, up to the sampler's error. images:
    [N, C, *spatial] in the range the network was trained on; class_labels: their classes, needed for a conditional
    network. options: those of `Engine`. Raises ValueError for a bad argument before any work.
    """
    inverse = InversionSampler.of(sampler or edm())
    engine = Engine(denoiser, sampler=inverse, **options)
    x = engine.sample(latents=images, class_labels=class_labels, progress=progress)
    return x / Plan(inverse, denoiser.preconditioning).rows[-1].sigma


def _prepare(denoiser: Denoiser, dtype: torch.dtype, device: torch.device) -> Denoiser:
    """A copy of the denoiser in eval mode; tensors are copied only if they must change."""
    if is_cast(denoiser.model, dtype) and device == _device_of(denoiser):
        shared = {id(t): t for t in (*denoiser.parameters(), *denoiser.buffers())}
        return copy.deepcopy(denoiser, shared).eval()
    prepared = copy.deepcopy(denoiser).to(device).eval()
    cast_network(prepared.model, dtype)
    return prepared


def _device(device: torch.device | str) -> torch.device:
    """A device that is there, with its index."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; allowed: 'cpu', 'cuda', 'cuda:0' and so on")
    if found.type == "cpu":
        return torch.device("cpu")
    index = found.index or 0
    if index >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}; allowed: 'cpu', or one of {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def _device_of(denoiser: Denoiser) -> torch.device:
    return next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))


_T = TypeVar("_T")


def _require_one_of(name: str, value: _T, allowed: tuple[_T, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")
