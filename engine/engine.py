"""``Engine``: a denoiser prepared once, and its runs from seeds to images."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from types import EllipsisType
from typing import Literal, TypeVar, Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .backends import select
from .batch_invariant import make_batch_invariant
from .denoiser import Denoiser
from .guidance import ClassifierGuidance, Guidance
from .job import Asked, Job
from .overflow import first_nonfinite
from .plan import Plan, Sampler
from .prepare import compile_network, device_of, find_device, is_ours, prepare
from .run import Run
from .samplers import AdaptiveSampler, edm
from .verify.self_check import Subject, checksum, self_check

_NETWORK_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_STATE_DTYPES = (torch.float64, torch.float32)
_DEFAULT_BATCH = 64


class NonFiniteError(ArithmeticError):
    """A sample became infinite or NaN; the message names its seed, the row and the network's dtype."""


class Engine:
    """A denoiser prepared for repeated sampling: moved and cast once.

    One engine may be called from several threads at once, without a lock: each call has buffers of its own, and an
    image depends neither on other calls nor on other engines. A call changes nothing global (random states, dtypes,
    grad mode, thread counts) and keeps nothing once its images are let go.

    Parameters
    ----------
    denoiser: `Denoiser`; the engine works on a copy, which shares its tensors if neither dtype nor device changes.
    sampler: default of `sample`; ``engine.samplers.edm()`` if None. guidance: default of `sample`, one of
    `engine.guidance`, or None.
    dtype: the network's dtype; None keeps the denoiser's own.
    state_dtype: the solver's, float64 or float32. output_dtype: of the images returned.
    backend: "auto" or a name from `engine.backends`. device: None keeps the denoiser's own.
    batch_size: samples evaluated together at most; None means 64.
    batch_invariant: promise each image the bits it would have in a batch of its own, whatever else is drawn with it.
    Our networks' operations on a CPU give these bits at no cost. Where a trial on this machine finds that a batch size
    gives others (CUDA's convolutions do, other modules may), smaller batches are evaluated, and a warning says so.
    compile: also run the network through torch.compile, for modules that are not of this package: its own have their
    operations fused already, and refuse.
    on_nonfinite: what to do when a sample becomes infinite or NaN: "raise" `NonFiniteError`, or "rerun" that sample
    alone with a float32 network (and raise if it happens again, or if the network is no half precision one).

    Raises ValueError naming the argument, what was given and what is allowed.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | None = None,
        dtype: torch.dtype | None = None,
        state_dtype: torch.dtype = torch.float64,
        output_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        batch_invariant: bool = False,
        compile: bool = False,
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
        self.sampler = edm() if sampler is None else sampler
        _require_sampler(self.sampler, guidance)
        self.device = find_device(device) if device is not None else device_of(denoiser)
        self.backend = select(backend, self.device, state_dtype, dtype or denoiser.dtype)
        self.state_dtype, self.output_dtype = state_dtype, output_dtype
        self.batch_size = batch_size or _DEFAULT_BATCH
        self.batch_invariant, self.compile = batch_invariant, compile
        self.denoiser = self._prepare(denoiser, dtype or denoiser.dtype)
        self.guidance, self._prepared_guidance = guidance, self._take(guidance)
        self.on_nonfinite = on_nonfinite
        self._source = denoiser  # what a rerun in float32 starts from
        self._checksum = checksum(self.denoiser)

    def sample(
        self,
        *,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | EllipsisType | None = ...,
        progress: bool = False,
        **asked: Unpack[Asked],
    ) -> Tensor:
        """Draw one image a seed: [N, C, *spatial] in ``output_dtype`` on the engine's device. See `engine.sample`.

        sampler: None for the engine's own. guidance: ``...`` for the engine's own, None for none.
        """
        batches = list(self.stream(sampler=sampler, guidance=guidance, progress=progress, **asked))
        return torch.cat([images for _, images in batches])

    def stream(
        self,
        *,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | EllipsisType | None = ...,
        progress: bool = False,
        batches: Iterable[int] | None = None,
        **asked: Unpack[Asked],
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Like `sample`, batch by batch: yields (where the images stand in what was asked for, images).

        batches: the numbers of those to draw, batch b standing from b * batch_size on; None for all. It may be an
        iterator: a number is taken when the batch before has been read. So parts of a job, drawn by several processes
        or after an interruption, are the bits that the whole job has.

        The whole job is checked by this call; the work is done as the iterator is read.
        """
        run, job = self._check(sampler, guidance, asked)
        return self._stream(run, job, progress, range(self._count(job)) if batches is None else batches)

    def labels(self, **asked: Unpack[Asked]) -> Tensor | None:
        """The labels [N, label_dim] that `sample` would use, those that seeds draw included; None without classes.

        Raises ValueError as `sample` does.
        """
        return self._check(None, ..., asked)[1].labels

    def _check(
        self, sampler: Sampler | AdaptiveSampler | None, guidance: Guidance | EllipsisType | None, asked: Asked
    ) -> tuple[Run, Job]:
        """What one call asks for, and how it is carried out."""
        sampler = self.sampler if sampler is None else sampler
        given = self.guidance if guidance is ... else guidance
        _require_sampler(sampler, given)
        prepared = self._prepared_guidance if guidance is ... else self._take(given)
        adaptive = sampler if isinstance(sampler, AdaptiveSampler) else None
        plan = Plan(sampler.ends if isinstance(sampler, AdaptiveSampler) else sampler, self.denoiser.preconditioning)
        job = Job.check(self.denoiser, plan, self.device, given.label_dim if given else 0, **asked)
        plans, weights = prepared.plans(plan, len(job.positions)) if prepared else ({}, [])
        own = (self.denoiser, self.device, self.backend, self.state_dtype)
        return Run(*own, plan, plans, weights, prepared, given, adaptive), job

    def self_check(self) -> None:
        """Check that this engine computes what it should, in a second or so: for the start of a production process.

        Its weights are still the bits it was built with (tensors shared with the caller's module change with it); its
        backend equals the reference to the bit in its dtypes on its device; its network's output is finite, and our own
        networks are as near to float32 on the CPU as the plain module in the same dtype (by one sample; for its time it
        holds two copies of the network).
        Raises `engine.SelfCheckError` naming the part; `edm-engine verify` is the long form.
        """
        self_check(Subject(self.denoiser, self._source, self.device, self.backend, self.state_dtype, self._checksum))

    def _take(self, guidance: Guidance | None) -> Guidance | None:
        """Guidance ready for this engine. Raises ValueError if it cannot guide its denoiser."""
        if guidance is None:
            return None
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is {guidance!r}; allowed: one of engine.guidance, or None")
        guidance.check(self.denoiser)
        if self.batch_invariant and isinstance(guidance, ClassifierGuidance):
            raise ValueError("guidance is ClassifierGuidance; allowed: others, with batch_invariant=True")
        return guidance.prepared(lambda denoiser: self._prepare(denoiser, self.denoiser.dtype, guide=True))

    def _prepare(self, denoiser: Denoiser, dtype: torch.dtype, guide: bool = False) -> Denoiser:
        prepared = prepare(denoiser, dtype, self.device)
        if self.compile and not (guide and is_ours(prepared.model)):
            compile_network(prepared)
        if self.batch_invariant:
            make_batch_invariant(prepared, self.batch_size)
        return prepared

    def _count(self, job: Job) -> int:
        """Of batches."""
        return math.ceil(len(job.positions) / self.batch_size)

    def _stream(
        self, run: Run, job: Job, progress: bool, batches: Iterable[int]
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        total = len(batches) * run.plan.nfe if isinstance(batches, Sized) and not run.adaptive else None
        with tqdm(total=total, unit="eval", desc="sampling", disable=not progress) as bar:
            for number in batches:
                batch = job.batch(number, self.batch_size)
                with torch.no_grad():
                    images = self._run(run, batch, lambda: bar.update() and None).to(self.output_dtype)
                yield batch.positions, images

    def _run(self, run: Run, job: Job, tick: Callable[[], None]) -> Tensor:
        """All samples of a job in one batch; those that did not stay finite again, if that was asked for."""
        state = run.batch(job, tick)
        broken = [sample for sample, row in enumerate(state.bad_row.tolist()) if row >= 0]
        if broken:
            state.x[broken] = self._rerun(run, job, broken, state.bad_row)
        return state.x

    def _rerun(self, run: Run, job: Job, broken: list[int], bad_row: Tensor) -> Tensor:
        """The samples that did not stay finite, each alone in float32, if that was asked for."""
        first = broken[0]
        where = f"at row {int(bad_row[first]) % len(run.plan.rows)} of the plan"
        what = (
            f"{job.name(first)}{f' (and {len(broken) - 1} more)' if len(broken) > 1 else ''} became non-finite "
            f"{'in rk45' if run.adaptive else where}; network dtype {self.denoiser.dtype}, "
            f"state dtype {self.state_dtype}; {self._culprit(run, job)}"
        )
        if self.on_nonfinite == "raise" or self.denoiser.dtype not in (torch.float16, torch.bfloat16):
            raise NonFiniteError(what)
        warnings.warn(f"{what}; run again in float32", RuntimeWarning, stacklevel=4)
        twin, again = self._twin(run, torch.float32)
        return torch.cat([twin._run(again, job.take([sample]), lambda: None) for sample in broken])

    def _culprit(self, run: Run, job: Job) -> str:
        """Where a batch that did not stay finite first did not, found by drawing it once more."""
        _, again = self._twin(run, self.denoiser.dtype)
        networks = nn.ModuleDict({"model": again.denoiser.model})
        guide = getattr(again.guidance, "guide", None)
        if isinstance(guide, Denoiser):
            networks["guide"] = guide.model
        with first_nonfinite(networks) as found:
            again.batch(job, lambda: None)
        return f"first in {found[0]}" if found else "not in a layer of the network"

    def _twin(self, run: Run, dtype: torch.dtype) -> tuple["Engine", Run]:
        """An engine that draws sample by sample with a network of its own in ``dtype``, and a run on it."""
        twin = Engine(
            self._source,
            dtype=dtype,
            state_dtype=self.state_dtype,
            backend=self.backend.name,
            device=self.device,
            batch_invariant=self.batch_invariant,
            batch_size=1,
        )
        return twin, replace(run, denoiser=twin.denoiser, guidance=twin._take(run.given))


def _require_sampler(sampler: object, guidance: Guidance | None) -> None:
    if not isinstance(sampler, Sampler | AdaptiveSampler):
        raise ValueError(f"sampler is {sampler!r}; allowed: an engine.Sampler, such as engine.samplers.edm()")
    if isinstance(sampler, AdaptiveSampler) and guidance is not None:
        raise ValueError(f"guidance is {type(guidance).__name__}; allowed: None, with the adaptive {sampler}")


_T = TypeVar("_T")


def _require_one_of(name: str, value: _T, allowed: tuple[_T, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")
