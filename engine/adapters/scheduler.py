"""``EngineScheduler``: a plan run row by row behind the step interface of diffusers."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .. import reference
from ..denoiser import per_sample
from ..discrete import Spacing
from ..nonfinite import NonFiniteError
from ..plan import Op, Plan, Sampler
from ..preconditioning import Discrete
from ..samplers import REGISTRY, Levels
from ..state import Noise, State
from .schedule import preconditioning_of

Generator = torch.Generator | list[torch.Generator] | None


class EngineScheduler(SchedulerMixin, ConfigMixin):
    """Any of our samplers in a pipeline of diffusers: the same plan as `EnginePipeline` and `engine.sample`, unfused.

    A pipeline multiplies unit noise by ``init_noise_sigma``, calls the network with ``scale_model_input(sample, t)``
    for each t of ``timesteps`` (one an evaluation: Heun's method has two a step) and gives what it returns to ``step``.
    Samplers over timesteps carry s x, s = 1 / sqrt(1 + sigma^2), which is what the network sees; so they also suit
    pipelines that neither scale nor know ``init_noise_sigma``, such as DDPMPipeline, whose latents are then larger than
    ours by 1 / init_noise_sigma, 2e-5 for linear betas. Others carry x = y + sigma n.

    The state is float64 whatever the dtype of the sample: a sample that comes back as it was handed out stands for the
    state it was rounded from, one that was changed in between replaces it. So the images are `engine.sample`'s, given
    the same noise: to the bit for float32 and float64 samples, except that half precision and the ablation's scaling
    s(t) see the sample rounded before it is scaled.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type, rescale_betas_zero_snr,
    sigma_data, sigma_min, sigma_max: what the network was trained with, as in diffusers; sigma_data makes it an EDM
    network. timestep_spacing, steps_offset: which timesteps samplers visit that can visit timesteps.
    sampler: a name from `engine.samplers.REGISTRY`. sampler_options: its options, without ``steps``.

    ``from_config`` takes the config of another scheduler, of which it reads these. One scheduler serves one call of a
    pipeline at a time, as all of diffusers do. Raises ValueError naming what is not allowed.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 (the interface's)
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: Spacing = "trailing",
        steps_offset: int = 0,
        sigma_data: float | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sampler: str = "ddim",
        sampler_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.preconditioning = preconditioning_of(self.config)
        self._scaled_state = self.sampler_of(2).scaled
        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        self._restart()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From the config of a scheduler of diffusers, its defaults among it, or of this class."""
        if isinstance(config, Mapping):
            preconditioning_of({**config, **kwargs})  # of a flow-matching model only our defaults would be left
            config = {name: value for name, value in config.items() if name != "_use_default_values"}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def sampler_of(self, num_inference_steps: int) -> Sampler:
        """The sampler of so many steps that the config names."""
        entry, options = REGISTRY.get(self.config.sampler), dict(self.config.sampler_options or {})
        if entry is None or not entry.fused:
            names = ", ".join(repr(name) for name, listed in REGISTRY.items() if listed.fused)
            raise ValueError(f"sampler is {self.config.sampler!r}; allowed: {names}")
        own = [name for name in inspect.signature(entry.make).parameters if name != "steps"]
        for name in options:
            if name not in own:
                raise ValueError(f"sampler_options has {name!r}; {entry.name} takes {', '.join(own)}")
        if "discretization" in own and isinstance(self.preconditioning, Discrete):
            options.setdefault("discretization", self.config.timestep_spacing)
        sampler: Any = entry.make(steps=num_inference_steps, **options)
        levels = getattr(sampler, "levels", None)
        if isinstance(levels, Levels) and levels.discretization == "leading":
            sampler = replace(sampler, levels=replace(levels, offset=self.config.steps_offset))
        made: Sampler = sampler
        return made

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Compile the plan of so many steps: ``plan``, ``timesteps`` and ``sigmas``, [nfe] and [nfe + 1]."""
        self._plan = Plan(self.sampler_of(num_inference_steps), self.preconditioning)
        self.num_inference_steps = num_inference_steps
        self.order = math.ceil(self.plan.nfe / self.plan.steps)
        kind = torch.int64 if isinstance(self.preconditioning, Discrete) else torch.float32
        self.timesteps = torch.tensor([row.c_noise for row in self.plan.rows[:-1]], device=device).to(kind)
        self.sigmas = torch.tensor([*self.plan.sigmas, 0.0])
        self._restart()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at another of the timesteps, with a sample of its noise level; for samplers without a memory."""
        if not 0 <= begin_index < self.plan.nfe or (begin_index and self.plan.slots):
            allowed = f"0 to {self.plan.nfe - 1}" if not self.plan.slots else f"0: {self.plan.sampler} needs its past"
            raise ValueError(f"begin_index is {begin_index}; allowed: {allowed}")
        self._restart(begin_index)

    @property
    def plan(self) -> Plan:
        """The plan of the last `set_timesteps`."""
        if self._plan is None:
            raise ValueError("the scheduler has no timesteps; call set_timesteps first")
        return self._plan

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the sample at the first timestep, the churn before the first evaluation included."""
        row = self.plan.rows[0]
        return math.hypot(row.ratio * row.begin_scale, row.std)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """What the network is called with: c_in x / s, rounded as in the engine, in the sample's dtype.

        sample: of any batch size, so that guided pipelines may double it; in the network's dtype.
        """
        row = self.plan.rows[self._next(timestep)]
        self._input_scaled = True
        if row.c_in == row.s_next == 1:
            return sample
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return (row.c_in * (x / torch.full((), row.s_next, dtype=x.dtype, device=x.device))).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generator = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample [B, C, *spatial] of the next timestep, in its dtype, from the network's output at this one.

        model_output: [B, >=C, *spatial]; channels beyond the sample's are not read. generator: draws the noise of a
        stochastic sampler, in float32 (float64 for a float64 sample), only where there is some.
        """
        k = self._next(timestep)
        begun, row = self.plan.rows[k], self.plan.rows[k + 1]
        if not (self._input_scaled or begun.c_in == begun.s_next == 1):
            scales = f"{self.config.sampler} scales the network's input"
            raise ValueError(f"timestep is {float(timestep)}, scale_model_input was not called before it; {scales}")
        if model_output.shape[:1] + model_output.shape[2:] != sample.shape[:1] + sample.shape[2:]:
            given = f"model_output has shape {list(model_output.shape)}"
            raise ValueError(f"{given}; allowed: that of the sample, {list(sample.shape)}, or more channels")
        state = self._take(sample, row.op)
        if row.std != 0:
            kind = torch.promote_types(sample.dtype, torch.float32)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=kind)
            state.noise = Noise(tuple(sample.shape[1:]), eps=noise.expand(self.plan.draws, *noise.shape))
        reference.advance(model_output, state, k + 1)
        self._row, self._input_scaled = k + 1, False
        if self._row == self.plan.nfe and bool((state.bad_row >= 0).any()):
            raise NonFiniteError(f"samples {(state.bad_row >= 0).nonzero().flatten().tolist()} became non-finite")
        prev_sample = self._handed_out(state, sample.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Images at the noise levels of timesteps [B], in the units of a sample of this scheduler.

        Raises ValueError for a sampler whose units are others still, the ablation's with scaling.
        """
        scaling = (self.config.sampler_options or {}).get("scaling", "none")
        if scaling != "none":
            raise ValueError(f"sampler_options has scaling {scaling!r}; allowed, for add_noise: 'none'")
        y = original_samples.to(torch.float64)
        if isinstance(self.preconditioning, Discrete):
            sigma = self.preconditioning.levels().to(y.device)[timesteps.to(y.device, torch.int64)]
        else:
            sigma = (4 * timesteps.to(y.device, torch.float64)).exp()  # c_noise = ln(sigma) / 4
        s = (1 + sigma**2) ** -0.5 if self._scaled_state else torch.ones_like(sigma)
        std = torch.where(sigma.isinf(), torch.ones_like(sigma), sigma * s)
        sample = per_sample(s, y) * y + per_sample(std, y) * noise.to(y.device, y.dtype)
        return sample.to(original_samples.dtype)

    def _restart(self, row: int = 0) -> None:
        self._row, self._input_scaled = row, False
        self._state: State | None = None

    def _next(self, timestep: Tensor | float) -> int:
        """The index of the evaluation that comes next, which is at this timestep."""
        k = self._row
        if k == self.plan.nfe:
            raise ValueError(f"timestep is {float(timestep)}, after the last; allowed: the first, after set_timesteps")
        if float(timestep) != self.plan.rows[k].c_noise:
            raise ValueError(f"timestep is {float(timestep)}; allowed: {self.plan.rows[k].c_noise}, timesteps[{k}]")
        return k

    def _take(self, sample: Tensor, op: Op) -> State:
        """The state that a sample stands for."""
        if self._state is None:
            self._state = State.allocate(
                torch.tensor(self.plan.table, device=sample.device),
                self.plan.slots,
                Noise(tuple(sample.shape[1:])),
                torch.zeros(len(sample), dtype=torch.int64, device=sample.device),
                state_dtype=torch.float64,
                net_dtype=sample.dtype,
            )
            self._state.x.copy_(sample)
        elif sample.shape != self._state.x.shape:
            raise ValueError(f"sample has shape {list(sample.shape)}; allowed: {list(self._state.x.shape)}, as before")
        elif not torch.equal(sample, self._handed_out(self._state, sample.dtype)):
            if op is Op.CORRECT:
                raise ValueError("sample is changed within a step; allowed: what the step before returned, as it is")
            self._state.x.copy_(sample)
        return self._state

    def _handed_out(self, state: State, dtype: torch.dtype) -> Tensor:
        """Where the network is to be evaluated next, rounded as `reference.advance` rounds it."""
        x = state.x
        if self._row < self.plan.nfe and self.plan.rows[self._row + 1].op is Op.CORRECT:
            x = x + self.plan.rows[self._row + 1].h_predict * state.slots[0]
        return x.to(torch.promote_types(dtype, torch.float32), copy=True).to(dtype)
