"""``Engine``: a denoiser prepared once, and its runs from seeds to images."""

import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence, Sized
from dataclasses import replace
from types import EllipsisType
from typing import Literal, Unpack, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .allowed import integer
from .backends import select
from .batch_invariant import make_batch_invariant
from .denoiser import Denoiser
from .fitting import fitting_batch
from .graphs import CapturedLoop, Mode, open_captured
from .guidance import ClassifierGuidance, Guidance
from .images import to_uint8
from .job import Asked, Job, require_known
from .launch import Finish, Launched, Launcher, buckets_of
from .modes import own_modes
from .nonfinite import Mending
from .options import (
    NETWORK_DTYPES,
    STATE_DTYPES,
    OnNonFinite,
    checked_batch_size,
    require_one_of,
    require_output_dtype,
    require_sampler,
)
from .plan import Sampler
from .plan_cache import PlanCache
from .prepare import compile_network, device_of, find_device, is_ours, prepare
from .preview import Callback
from .progress import progress_bar
from .ranges import marked
from .run import Counted, Run, Watch
from .samplers import AdaptiveSampler, edm
from .transfer import settle
from .verify.self_check import Subject, checksum, self_check

_DEFAULT_BATCH = 64
Batches = Generator[tuple[tuple[int, ...], Tensor], None, None]


class Engine:
    """A denoiser prepared for repeated sampling: moved and cast once, and on a GPU captured in CUDA graphs.

    One engine may be called from several threads at once, without a lock, and several may be alive: an image depends
    neither on other calls nor on other engines. Calls that go through graphs are served one after the other, all others
    have buffers of their own. A call changes nothing global (random states, dtypes, grad mode, thread counts).

    Parameters
    ----------
    denoiser: `Denoiser`; the engine works on a copy; one of a module that is not of this package shares its tensors if
    neither dtype nor device changes.
    sampler: default of `sample`; ``engine.samplers.edm()`` if None. guidance: default of `sample`, one of
    `engine.guidance`, or None.
    dtype: the network's dtype; None keeps the denoiser's own.
    state_dtype: the solver's, float64 or float32. output_dtype: of the images returned.
    backend: "auto" or a name from `engine.backends`. device: None keeps the denoiser's own.
    batch_size: samples evaluated together at most; None means 64, "auto" the largest power of two that a GPU's memory
    holds, by measurement (64 on a CPU). Where a batch does not fit a GPU after all, smaller ones are drawn, and a
    warning says so.
    batch_invariant: promise each image the bits it would have in a batch of its own, whatever else is drawn with it.
    Our networks' operations on a CPU give these bits at no cost. Where a trial on this machine finds that a batch size
    gives others (CUDA's convolutions do, other modules may), smaller batches are evaluated, and a warning says so.
    buckets: sizes to which smaller batches are padded, the padding being drawn and dropped; () for no padding, None for
    powers of two on a GPU and no padding on a CPU.
    graph: "loop" captures all evaluations and fused steps of a batch in one CUDA graph; "step" one evaluation and its
    step, replayed for each, which takes the same memory for any number of them; "off" neither. "auto" is "loop" up to
    128 evaluations and "step" beyond and for callbacks, from a batch size's second batch (or step) on, where there is a
    GPU; a network that cannot be captured then runs without, and a warning names the operation to blame. Results are
    the same bits.
    graph_memory: bytes of buffers and graphs to keep at most, those used last; None for half of the device's memory.
    compile: also run the network through torch.compile, for modules that are not of this package: its own have their
    operations fused already, and refuse.
    on_nonfinite: what to do when a sample becomes infinite or NaN: "raise" `NonFiniteError`, or "rerun" that sample
    alone with a float32 network (and raise if it happens again, or if the network is no half precision one). That one
    is made from ``denoiser`` when it is first needed, so its module must not have changed since, and is kept.

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
        batch_size: int | Literal["auto"] | None = None,
        batch_invariant: bool = False,
        buckets: Sequence[int] | None = None,
        graph: Mode = "auto",
        graph_memory: int | None = None,
        compile: bool = False,
        on_nonfinite: OnNonFinite = "raise",
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"denoiser is a {type(denoiser).__name__}; allowed: an engine.Denoiser")
        require_one_of("dtype", dtype or denoiser.dtype, NETWORK_DTYPES)
        require_one_of("state_dtype", state_dtype, STATE_DTYPES)
        require_output_dtype(output_dtype)
        batch_size = checked_batch_size(batch_size)
        require_one_of("batch_invariant", batch_invariant, (False, True))
        require_one_of("compile", compile, (False, True))
        require_one_of("on_nonfinite", on_nonfinite, get_args(OnNonFinite))
        self.sampler = edm() if sampler is None else sampler
        require_sampler(self.sampler, guidance, graph)
        self.device = find_device(device) if device is not None else device_of(denoiser)
        self.backend = select(backend, self.device, state_dtype, dtype or denoiser.dtype)
        captured = open_captured(graph, self.device, self.backend, graph_memory)
        self.state_dtype, self.output_dtype, self.graph = state_dtype, output_dtype, graph
        self.batch_invariant, self.compile = batch_invariant, compile
        self.denoiser = prepare(denoiser, dtype or denoiser.dtype, self.device)
        copies = guidance.copies if isinstance(guidance, Guidance) else 1
        fitting = fitting_batch(self.denoiser, self.device, copies) if batch_size == "auto" else batch_size
        self.batch_size = fitting or _DEFAULT_BATCH
        self._launcher = Launcher(
            self.device, self.batch_size, buckets_of(buckets, self.batch_size, self.device), captured
        )
        self._finish_preparing(self.denoiser)
        self._guides: WeakKeyDictionary[Denoiser, Denoiser] = WeakKeyDictionary()
        self.plans = PlanCache(self.denoiser.preconditioning)
        self.guidance, self._prepared_guidance = guidance, self._take(guidance)
        self.on_nonfinite = on_nonfinite
        self.source = denoiser  # the caller's: what a rerun in float32 starts from, and what a job's record names
        self._twins: dict[torch.dtype, Engine] = {}
        self._checksum = checksum(self.denoiser).cpu()  # which waits for the weights: other streams may use them now

    def sample(
        self,
        *,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | EllipsisType | None = ...,
        progress: bool = False,
        callback: Callback | None = None,
        callback_every: int = 1,
        **asked: Unpack[Asked],
    ) -> Tensor:
        """Draw one image a seed: [N, C, *spatial] in ``output_dtype`` on the engine's device. See `engine.sample`.

        sampler: None for the engine's own. guidance: ``...`` for the engine's own, None for none.
        """
        require_known("sample", asked, Asked)
        batches = self.stream(
            sampler=sampler,
            guidance=guidance,
            progress=progress,
            callback=callback,
            callback_every=callback_every,
            **asked,
        )
        return torch.cat([images for _, images in batches])

    def stream(
        self,
        *,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | EllipsisType | None = ...,
        progress: bool = False,
        callback: Callback | None = None,
        callback_every: int = 1,
        batches: Iterable[int] | None = None,
        counted: Counted | None = None,
        **asked: Unpack[Asked],
    ) -> Batches:
        """Like `sample`, batch by batch: yields (where the images stand in what was asked for, images).

        batches: the numbers of those to draw, batch b standing from b * batch_size on; None for all. It may be an
        iterator: a number is taken when the batch before has been read (on a GPU one earlier: a batch is queued there
        while the one before it is drawn). So parts of a job, drawn by several processes or after an interruption, are
        the bits that the whole job has.

        counted: called with positions and how many evaluations each sample there took, int64 [B], by an adaptive
        sampler, whose plan does not say.

        The whole job is checked by this call; the work is done as the iterator is read.
        """
        require_known("stream", asked, Asked)
        run, job = self._check(sampler, guidance, asked)
        watch = replace(self._watch(run, callback, callback_every), counted=counted)
        return self._stream(run, job, watch, progress, self._numbers(job, batches), self._floats, to_host=False)

    def stream_uint8(
        self,
        *,
        sampler: Sampler | AdaptiveSampler | None = None,
        guidance: Guidance | EllipsisType | None = ...,
        progress: bool = False,
        batches: Iterable[int] | None = None,
        **asked: Unpack[Asked],
    ) -> Batches:
        """Like `stream`, with the images as bytes on the host: `engine.to_uint8` of them, uint8 [B, C, *spatial].

        On a GPU they are copied on a stream of their own while the next batch is drawn.
        """
        require_known("stream_uint8", asked, Asked)
        run, job = self._check(sampler, guidance, asked)
        numbers = self._numbers(job, batches)
        return self._stream(run, job, Watch(), progress, numbers, lambda x: to_uint8(self._floats(x)), to_host=True)

    def labels(self, **asked: Unpack[Asked]) -> Tensor | None:
        """The labels [N, label_dim] that `sample` would use, those that seeds draw included; None without classes.

        Raises ValueError as `sample` does.
        """
        require_known("labels", asked, Asked)
        return self._check(None, ..., asked)[1].labels

    @property
    def buckets(self) -> tuple[int, ...]:
        """The sizes to which batches are padded, ascending; () where they are not."""
        return self._launcher.buckets

    @property
    def captures(self) -> tuple[CapturedLoop, ...]:
        """What has been captured and is kept, with the seconds that took and the bytes; () without graphs."""
        return () if self._launcher.captured is None else self._launcher.captured.loops()

    def self_check(self) -> None:
        """Check that this engine computes what it should, in a second or so: for the start of a production process.

        Its weights are still the bits it was built with (tensors shared with the caller's module change with it); its
        backend equals the reference to the bit in its dtypes on its device; its network's output is finite, and our own
        networks are as near to float32 on the CPU as the plain module in the same dtype (by one sample; for its time it
        holds two copies of the network).
        Raises `engine.SelfCheckError` naming the part; `edm-engine verify` is the long form.
        """
        self_check(Subject(self.denoiser, self.source, self.device, self.backend, self.state_dtype, self._checksum))

    def _check(
        self, sampler: Sampler | AdaptiveSampler | None, guidance: Guidance | EllipsisType | None, asked: Asked
    ) -> tuple[Run, Job]:
        """What one call asks for, and how it is carried out."""
        sampler = self.sampler if sampler is None else sampler
        given = self.guidance if guidance is ... else guidance
        require_sampler(sampler, given, self.graph)
        prepared = self._prepared_guidance if guidance is ... else self._take(given)
        adaptive = sampler if isinstance(sampler, AdaptiveSampler) else None
        with marked("plan"):
            plan = self.plans(sampler.ends if isinstance(sampler, AdaptiveSampler) else sampler)
            job = Job.check(self.denoiser, plan, self.device, given.label_dim if given else 0, **asked)
            plans, weights = prepared.plans(plan, len(job.positions)) if prepared else ({}, [])
        own = (self.denoiser, self.device, self.backend, self.state_dtype)
        return Run(*own, plan, plans, weights, prepared, given, adaptive), job

    def _watch(self, run: Run, callback: Callback | None, every: int) -> Watch:
        every = integer("callback_every", every, 1)
        if callback is None:
            return Watch()
        if not callable(callback):
            raise ValueError(f"callback is {callback!r}; allowed: a function of an engine.Progress, or None")
        if run.adaptive:
            raise ValueError(f"callback is given; allowed: None, with the adaptive {run.adaptive}")
        return Watch(callback=callback, every=every)

    def _take(self, guidance: Guidance | None) -> Guidance | None:
        """Guidance ready for this engine. Raises ValueError if it cannot guide its denoiser."""
        if guidance is None:
            return None
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is {guidance!r}; allowed: one of engine.guidance, or None")
        guidance.check(self.denoiser)
        if self.batch_invariant and isinstance(guidance, ClassifierGuidance):
            raise ValueError("guidance is ClassifierGuidance; allowed: others, with batch_invariant=True")
        return guidance.prepared(self._prepared_guide)

    def _prepared_guide(self, guide: Denoiser) -> Denoiser:
        """The guide prepared like the engine's own denoiser, once as long as the caller keeps it."""
        if guide not in self._guides:
            prepared = prepare(guide, self.denoiser.dtype, self.device)
            self._finish_preparing(prepared, guide=True)
            settle(self.device)
            self._guides[guide] = prepared
        return self._guides[guide]

    def _finish_preparing(self, prepared: Denoiser, guide: bool = False) -> None:
        if self.compile and not (guide and is_ours(prepared.model)):
            compile_network(prepared)
        if self.batch_invariant:
            make_batch_invariant(prepared, self.batch_size)

    def _numbers(self, job: Job, batches: Iterable[int] | None) -> Iterable[int]:
        """Numbers of the batches to draw. Raises ValueError if they are no iterable, or a list in which one is wrong.

        Those of an iterator are not known yet: `Job.batch` checks each.
        """
        every = math.ceil(len(job.positions) / self.batch_size)
        if not (batches is None or isinstance(batches, Iterable)):
            raise ValueError(f"batches is {batches!r}; allowed: numbers of batches, 0 to {every - 1}, or None")
        listed: Iterable[int] = batches if isinstance(batches, Sized) else ()
        for number in listed:
            job.places(number, self.batch_size)
        return range(every) if batches is None else batches

    def _floats(self, x: Tensor) -> Tensor:
        """The images of a final state, which the next batch may overwrite."""
        return x.to(self.output_dtype, copy=True)

    def _stream(
        self,
        run: Run,
        job: Job,
        watch: Watch,
        progress: bool,
        batches: Iterable[int],
        finish: Finish,
        to_host: bool,
    ) -> Batches:
        total = len(batches) * run.plan.nfe if isinstance(batches, Sized) and not run.adaptive else None
        ahead = 0 if watch.callback else self._launcher.ahead
        under_way: deque[Launched] = deque()
        with progress_bar(total, "eval", "sampling", disable=not progress) as bar:
            watch = replace(watch, tick=bar.update)
            for number in batches:
                try:
                    with own_modes(self.device):
                        batch = job.batch(number, self.batch_size)
                        under_way.append(self._launcher.launch(run, batch, watch, finish, to_host))
                except Exception:
                    while under_way:  # what was drawn before is the caller's all the same
                        yield self._images(under_way.popleft(), finish)
                    raise
                if len(under_way) > ahead:
                    yield self._images(under_way.popleft(), finish)
            while under_way:
                yield self._images(under_way.popleft(), finish)

    def _images(self, launched: Launched, finish: Finish) -> tuple[tuple[int, ...], Tensor]:
        return launched.job.positions, Mending(self.on_nonfinite, self._twin).images(launched, finish)

    def _twin(self, run: Run, dtype: torch.dtype) -> tuple[Launcher, Run]:
        """What draws sample by sample with a network of its own in ``dtype``, made once, and a run on it."""
        if dtype not in self._twins:
            self._twins[dtype] = Engine(
                self.source,
                dtype=dtype,
                state_dtype=self.state_dtype,
                backend=self.backend.name,
                device=self.device,
                batch_invariant=self.batch_invariant,
                batch_size=1,
                graph="off",
            )
        twin = self._twins[dtype]
        return twin._launcher, replace(run, denoiser=twin.denoiser, guidance=twin._take(run.given))
