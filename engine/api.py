"""``sample`` and ``Engine``: from seeds to images."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from . import loop
from .backends import select
from .denoiser import Denoiser
from .job import Job, Labels, Seeds
from .networks.precision import cast_network
from .plan import Plan
from .samplers import Sampler, edm
from .state import State

_NETWORK_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATE_DTYPES = (torch.float64, torch.float32)
_DEFAULT_BATCH = 64


class NonFiniteError(ArithmeticError):
    """A sample became infinite or NaN; the message names its seed, the row and the network's dtype."""


class Engine:
    """A denoiser prepared for repeated sampling: cast, moved and laid out once, never changed afterwards.

    Parameters
    ----------
    denoiser: `Denoiser`; the engine works on a copy (parameters are shared when neither dtype nor device changes).
    sampler: default of `sample`; ``engine.samplers.edm()`` if None.
    dtype: the network's dtype; None keeps the denoiser's own.
    state_dtype: the solver's, float64 or float32. output_dtype: of the images returned.
    backend: "auto" or a name from `engine.backends`. device: None keeps the denoiser's own.
    batch_size: samples evaluated together at most; None means 64.

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
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"denoiser is a {type(denoiser).__name__}; allowed: an engine.Denoiser")
        _require_one_of("dtype", dtype or denoiser.dtype, _NETWORK_DTYPES)
        _require_one_of("state_dtype", state_dtype, _STATE_DTYPES)
        if not output_dtype.is_floating_point:
            raise ValueError(f"output_dtype is {output_dtype}; allowed: a floating dtype (engine.to_uint8 makes bytes)")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed: an integer from 1, or None")
        self.sampler = sampler or edm()
        self.device = torch.device(device) if device is not None else _device_of(denoiser)
        self.backend = select(backend, self.device, state_dtype)
        self.state_dtype, self.output_dtype = state_dtype, output_dtype
        self.batch_size = batch_size or _DEFAULT_BATCH
        self.denoiser = _prepare(denoiser, dtype or denoiser.dtype, self.device)

    def sample(
        self,
        *,
        seeds: Seeds | None = None,
        latents: Tensor | None = None,
        noise: str | Tensor = "philox",
        class_labels: Labels = None,
        sampler: Sampler | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw one image a seed: [N, C, *spatial] in ``output_dtype`` on the engine's device. See `engine.sample`."""
        plan = Plan(sampler or self.sampler, self.denoiser.preconditioning)
        job = Job.check(self.denoiser, plan, seeds, latents, noise, class_labels)
        batches = [slice(i, min(i + self.batch_size, job.count)) for i in range(0, job.count, self.batch_size)]
        images = torch.empty(job.count, *job.shape, dtype=self.output_dtype, device=self.device)
        with _progress(progress, len(batches) * plan.nfe) as tick, torch.no_grad():
            for batch in batches:
                images[batch] = self._run(plan, job, batch, tick).to(self.output_dtype)
        return images

    def _run(self, plan: Plan, job: Job, batch: slice, tick: Callable[[], None]) -> Tensor:
        state = State.allocate(
            torch.tensor(plan.table, device=self.device),
            plan.slots,
            job.batch_noise(batch, self.device),
            torch.zeros(batch.stop - batch.start, dtype=torch.int64, device=self.device),
            state_dtype=self.state_dtype,
            net_dtype=self.denoiser.dtype,
        )
        labels = None if job.labels is None else job.labels[batch].to(self.device)
        loop.run(lambda x, c: self.denoiser.call_network(x, c, labels), state, plan.nfe, self.backend, tick)
        self._refuse_non_finite(state, job, batch)
        return state.x

    def _refuse_non_finite(self, state: State, job: Job, batch: slice) -> None:
        rows = state.bad_row.tolist()
        broken = [(job.name(batch.start + b), row) for b, row in enumerate(rows) if row >= 0]
        if broken:
            what, row = broken[0]
            others = f" (and {len(broken) - 1} more of this batch)" if len(broken) > 1 else ""
            raise NonFiniteError(
                f"{what}{others} became non-finite at row {row} of the plan; network dtype {self.denoiser.dtype}, "
                f"state dtype {self.state_dtype}"
            )


def sample(
    denoiser: Denoiser,
    *,
    seeds: Seeds | None = None,
    latents: Tensor | None = None,
    noise: str | Tensor = "philox",
    class_labels: Labels = None,
    sampler: Sampler | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    state_dtype: torch.dtype = torch.float64,
    output_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw images from a denoiser, one a seed: [N, C, *spatial], in ``output_dtype``, on ``device``.

    seeds: N distinct integers in [0, 2**64). latents: instead of the seeds' own, unit variance [N, C, *spatial]
    (scaled by sigma_0 s_0 inside). noise: "philox" (each seed's own stream) or a tensor [draws, N, C, *spatial]; draw i
    is used by step i, whether or not that step churns. class_labels: an int, N ints, or one-hot/soft [N, label_dim];
    None lets each seed draw its class (conditional networks). progress: a bar over network evaluations on stderr.
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
    )
    return engine.sample(seeds=seeds, latents=latents, noise=noise, class_labels=class_labels, progress=progress)


def _prepare(denoiser: Denoiser, dtype: torch.dtype, device: torch.device) -> Denoiser:
    """A copy of the denoiser in eval mode; tensors are copied only if they must change."""
    if dtype == denoiser.dtype and device == _device_of(denoiser):
        shared = {id(t): t for t in (*denoiser.parameters(), *denoiser.buffers())}
        return copy.deepcopy(denoiser, shared).eval()
    prepared = copy.deepcopy(denoiser).to(device).eval()
    cast_network(prepared.model, dtype)
    return prepared


def _device_of(denoiser: Denoiser) -> torch.device:
    return next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))


_T = TypeVar("_T")


def _require_one_of(name: str, value: _T, allowed: tuple[_T, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


@contextlib.contextmanager
def _progress(show: bool, total: int) -> Iterator[Callable[[], None]]:
    with tqdm(total=total, unit="eval", desc="sampling", disable=not show) as bar:
        yield lambda: bar.update() and None
