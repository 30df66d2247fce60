"""``Run``: one plan carried out, batch by batch, by one prepared denoiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import adaptive, loop
from .backends import Backend
from .denoiser import Denoiser
from .guidance import Guidance
from .job import Job
from .plan import Plan
from .samplers import AdaptiveSampler
from .state import State


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

    def batch(self, job: Job, tick: Callable[[], None]) -> State:
        """All samples of a job in one batch; their final state. tick: called after each evaluation."""
        table, base_row, guided = self._table(job.positions)
        state = State.allocate(
            torch.tensor(table, device=self.device),
            self.plan.slots,
            job.noise_on(self.device),
            torch.tensor(base_row, device=self.device),
            state_dtype=self.state_dtype,
            net_dtype=self.denoiser.dtype,
            net_channels=self.denoiser.net_channels,
            copies=self.guidance.copies if self.guidance else 1,
            rescales=bool(self.guidance and self.guidance.rescale),
            known=job.known_on(self.device),
        )
        labels = None if job.labels is None else job.labels.to(self.device)
        if self.adaptive:
            self._solve(self.adaptive, job, state, labels, tick)
        else:
            loop.run(self._network(guided, state, labels), state, self.plan.nfe, self.backend, tick)
        return state

    def _network(self, guided: Sequence[bool], state: State, labels: Tensor | None) -> loop.Network:
        """The evaluation that each row needs: with guidance, or, where no sample's row has it, without."""
        guidance, count = self.guidance, len(state.x)
        both = guidance.labels(labels) if guidance else labels

        def network(net_in: Tensor, c_noise: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
            if guidance and guided[k + 1]:
                return guidance.evaluate(self.denoiser, net_in, c_noise, both, self.plan.sigmas[k])
            return self.denoiser.call_network(net_in[:count], c_noise[:count], labels), None

        return network

    def _solve(
        self,
        sampler: AdaptiveSampler,
        job: Job,
        state: State,
        labels: Tensor | None,
        tick: Callable[[], None],
    ) -> None:
        """The adaptive solver between the ends of the plan, then its step to 0."""

        def denoise(x: Tensor, sigma: Tensor, samples: Tensor) -> Tensor:
            D = self.denoiser(x, sigma, None if labels is None else labels[samples])
            known = torch.full_like(D, torch.nan) if state.known is None else state.known[samples].to(D.dtype)
            return torch.where(known.isnan(), D, known)

        self.backend.advance(None, state, 0)
        high, low = self.plan.sigmas
        try:
            x, _ = adaptive.solve(denoise, state.x, high, low, sampler, tick)
        except adaptive.TooManyEvaluations as error:
            raise ArithmeticError(f"{job.name(error.sample)}: {error}") from None
        everyone = torch.arange(len(x), device=self.device)
        state.x.copy_(denoise(x, torch.full([len(x)], low, device=self.device), everyone))
        tick()
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
