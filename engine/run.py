"""``Run``: one plan carried out, batch by batch, by one prepared denoiser."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from . import adaptive, loop
from .backends import Backend
from .batch import Buffers, Inputs, Spec
from .denoiser import Denoiser
from .guidance import Guidance
from .job import Job
from .plan import Plan
from .preview import Callback, Progress, denoised
from .samplers import AdaptiveSampler
from .state import State
from .transfer import to_device

Counted = Callable[[tuple[int, ...], Tensor], object]


@dataclass(frozen=True)
class Watch:
    """Who looks on while a batch is drawn.

    tick(n): n evaluations more are done, or on a device are queued. callback: called after every ``every`` evaluations
    and after the last, for as many samples as ``positions``, which say where they stand in what was asked for; what it
    raises ends the batch. counted: told once a batch, of an adaptive sampler alone, where its samples stand and the
    evaluations that each took, int64 [B].
    """

    tick: Callable[[int], object] = lambda evaluations: None
    callback: Callback | None = None
    every: int = 1
    positions: tuple[int, ...] = ()
    counted: Counted | None = None

    def at(self, positions: tuple[int, ...]) -> "Watch":
        """The same for samples that stand there."""
        return replace(self, positions=positions)

    def looks_at(self, k: int, nfe: int) -> bool:
        """Whether the callback is called after evaluation k."""
        return self.callback is not None and ((k + 1) % self.every == 0 or k + 1 == nfe)

    def show(self, run: "Run", k: int, D: Tensor) -> None:
        """Tell the callback of evaluation k."""
        assert self.callback is not None
        nfe, sigma = run.plan.nfe, run.plan.sigmas[k]
        self.callback(Progress(self.positions, k + 1, nfe, sigma, D[: len(self.positions)].clone()))


@dataclass(frozen=True)
class Run:
    """How jobs are carried out: by whom, the plan, and with guidance the plans of all weights and each sample's weight.

    denoiser, guidance: prepared for the device; given: the guidance before it was. adaptive: RK45, whose plan is but
    its ends.
    """

    denoiser: Denoiser
    device: torch.device
    backend: Backend
    state_dtype: torch.dtype
    plan: Plan
    plans: dict[float, Plan]
    weights: list[float]
    guidance: Guidance | None
    given: Guidance | None
    adaptive: AdaptiveSampler | None

    @property
    def networks(self) -> nn.ModuleDict:
        """All that an evaluation calls, by the names that messages use."""
        guide = getattr(self.guidance, "guide", None)
        guides = {"guide": guide.model} if isinstance(guide, Denoiser) else {}
        return nn.ModuleDict({"model": self.denoiser.model, **guides})

    @property
    def baked(self) -> Hashable:
        """What a captured loop holds beside its buffers and which rows are guided; all else is data."""
        return None if self.guidance is None else self.guidance.baked

    def inputs(self, job: Job) -> Inputs:
        """All samples of a job as one batch."""
        table, base_row, guided = self._table(job.positions)
        rows = 1 << len(self.plan.rows).bit_length()  # more than there are: a check may read past the last
        labels = None if job.labels is None else to_device(job.labels, self.device)
        return Inputs(
            Spec(
                self.device,
                self.state_dtype,
                self.denoiser.dtype,
                self.denoiser.net_channels,
                self.plan.slots,
                self.guidance.copies if self.guidance else 1,
                bool(self.guidance and self.guidance.rescale),
            ),
            torch.tensor(table, device="cpu"),
            rows * (len(job.positions) if self.plans else 1),
            torch.tensor(base_row, dtype=torch.int64, device="cpu"),
            job.noise_on(self.device),
            self.guidance.labels(labels) if self.guidance else labels,
            job.known_on(self.device),
            tuple(guided),
        )

    def eagerly(self, job: Job, watch: Watch) -> State:
        """Draw a batch in buffers of its own; its final state."""
        inputs = self.inputs(job)
        buffers = Buffers.of(inputs)
        if self.adaptive:
            self._solve(self.adaptive, job, buffers, watch)
        else:
            seen: dict[int, Tensor] = {}  # taken before `advance` fills the network's input again, shown after it

            def look(k: int) -> loop.Look | None:
                return (lambda *of: seen.update({k: denoised(*of)})) if watch.looks_at(k, self.plan.nfe) else None

            def after(k: int) -> None:
                watch.tick(1)
                if k in seen:
                    watch.show(self, k, seen.pop(k))

            loop.run(self.network(buffers), buffers.state, inputs.guided, self.backend, look, after)
        return buffers.state

    def network(self, buffers: Buffers) -> loop.Network:
        """The evaluation that a row needs: with guidance, or where no sample's row has it, without."""
        guidance, count, labels = self.guidance, len(buffers.state.x), buffers.labels
        alone = buffers.state.net_in[:count], buffers.state.c_noise[:count], None if labels is None else labels[:count]

        def network(state: State, k: int, guided: bool) -> tuple[Tensor, Tensor | None]:
            if guidance and guided:
                level = lambda: state.level(k)  # noqa: E731
                return guidance.evaluate(self.denoiser, state.net_in, state.c_noise, labels, level)
            return self.denoiser.call_network(*alone), None

        return network

    def _solve(self, sampler: AdaptiveSampler, job: Job, buffers: Buffers, watch: Watch) -> None:
        """The adaptive solver between the ends of the plan, then its step to 0."""
        state, labels = buffers.state, buffers.labels

        def denoise(x: Tensor, sigma: Tensor, samples: Tensor) -> Tensor:
            D = self.denoiser(x, sigma, None if labels is None else labels[samples])
            known = torch.full_like(D, torch.nan) if state.known is None else state.known[samples].to(D.dtype)
            return torch.where(known.isnan(), D, known)

        self.backend.advance(None, state, 0)
        high, low = self.plan.sigmas
        try:
            x, nfe = adaptive.solve(denoise, state.x, high, low, sampler, lambda: watch.tick(1))
        except adaptive.TooManyEvaluations as error:
            raise ArithmeticError(f"{job.name(error.sample)}: {error}") from None
        everyone = torch.arange(len(x), device=self.device)
        state.x.copy_(denoise(x, torch.full([len(x)], low, device=self.device), everyone))
        watch.tick(1)
        if watch.counted is not None:
            watch.counted(watch.positions, nfe[: len(watch.positions)] + 1)
        state.bad_row[~torch.isfinite(state.x).flatten(1).all(1)] = 1

    def _table(self, positions: Sequence[int]) -> tuple[np.ndarray, list[int], list[bool]]:
        """For some samples: the tables of their weights one below the other, where each sample's begins, and which
        rows need the second evaluation for any of them."""
        if not self.plans:
            return self.plan.table, [0] * len(positions), [False] * len(self.plan.rows)
        weights = [self.weights[position] for position in positions]
        first = {weight: index * len(self.plan.rows) for index, weight in enumerate(dict.fromkeys(weights))}
        plans = [self.plans[weight] for weight in first]
        guided = [any(row.guide_G != 0 for row in rows) for rows in zip(*(plan.rows for plan in plans), strict=True)]
        return np.concatenate([plan.table for plan in plans]), [first[weight] for weight in weights], guided
