"""Our samplers against the schedulers of diffusers, on the same noise levels.

Each runs twice: as it ships, where some round the state to float32 at every step, and with its float32 read as float64.
"""

import contextlib
import sys
from fractions import Fraction

import pytest
import torch

import engine
from engine import discrete
from engine.preconditioning import Discrete
from engine.samplers import REGISTRY
from tests.helpers import wavy
from tests.peers.compare import (
    DENOISER,
    EXACT,
    FLOAT32,
    LATENTS,
    NOISE,
    RANGE,
    SHAPE,
    STEPS,
    D,
    assert_agree,
    drawn,
    float64,
)

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (make test)")
# They call np.array on tensors, which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
wide = pytest.mark.parametrize("wide", [False, True], ids=["as it ships", "float64"])


def module_of(name):
    return sys.modules[getattr(diffusers, name).__module__]


def converted(scheduler, x, denoised, sigma, s):
    """What a network would return whose denoiser gives ``denoised`` for s x, in the parametrization they expect."""
    prediction = scheduler.config.prediction_type
    if "sigma_data" in scheduler.config:  # equation 7 of the EDM paper, solved for F
        total = sigma**2 + scheduler.config.sigma_data**2
        return (denoised - scheduler.config.sigma_data**2 / total * x) / (
            sigma * scheduler.config.sigma_data / total**0.5
        )
    noise = (x / s - denoised) / sigma
    vp = (1 + sigma**2) ** -0.5
    return {"sample": denoised, "epsilon": noise, "v_prediction": vp * (noise - sigma * denoised)}[prediction]


def peer_draws(scheduler, sigmas, vp):
    """vp: whether the scheduler's variable is s x, s = 1 / sqrt(1 + sigma^2), instead of x = y + sigma n."""
    scheduler.set_timesteps(-(-(len(sigmas) - 1) // scheduler.order))
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    x = LATENTS * sigmas[0] * ((1 + sigmas[0] ** 2) ** -0.5 if vp else 1.0)
    assert len(scheduler.timesteps) == len(sigmas) - 1
    for t, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        s = (1 + sigma**2) ** -0.5 if vp else torch.ones(())
        scheduler.scale_model_input(x, t)  # some want it called
        x = scheduler.step(converted(scheduler, x, D(x / s, sigma), sigma, s), t, x).prev_sample
    return x


VP = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"}
# Their step() begins with sample.to(torch.float32). (All tabulate their levels in float32; they get ours instead.)
ROUNDS_X = {
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "EDMEulerScheduler",
}
SDE = {"algorithm_type": "sde-dpmsolver++"}
DISCRETE = [
    *[("EulerDiscreteScheduler", {}, name, options) for name, options in [("edm", {"solver": "euler"}), ("ddim", {})]],
    ("EulerAncestralDiscreteScheduler", {}, "ddpm", {}),
    ("HeunDiscreteScheduler", {}, "edm", {}),
    ("LMSDiscreteScheduler", {}, "lms", {}),
    ("DPMSolverMultistepScheduler", {}, "dpmpp_2m", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, "ddim", {}),
    ("DPMSolverMultistepScheduler", SDE, "dpmpp_2m_sde", {}),
    ("DPMSolverMultistepScheduler", SDE | {"solver_order": 1}, "ddpm", {}),
    *[("DPMSolverSinglestepScheduler", {"lower_order_final": True}, "dpmpp_2s", {"r": r}) for r in (0.5, 0.3)],
    ("UniPCMultistepScheduler", {}, "unipc", {}),
]
OF_EDM = [
    # Their churn is added after the network has seen x, so it is not Algorithm 2 and not compared.
    ("EDMEulerScheduler", {}, "edm", {"solver": "euler"}),
    ("EDMDPMSolverMultistepScheduler", {}, "dpmpp_2m", {}),
    ("EDMDPMSolverMultistepScheduler", SDE, "dpmpp_2m_sde", {}),
]


@wide
@pytest.mark.parametrize(
    ("name", "their_options", "ours", "options"),
    [
        *[(name, given | {"prediction_type": prediction}, ours, options)
          for name, given, ours, options in DISCRETE
          for prediction in ("epsilon", "v_prediction", "sample")
          if (name, prediction) != ("EulerAncestralDiscreteScheduler", "sample")],
        *OF_EDM,
    ],
    ids=str,
)  # fmt: skip
def test_scheduler(name, their_options, ours, options, wide, monkeypatch):
    if name == "LMSDiscreteScheduler":
        pytest.importorskip("scipy", reason="needs scipy, to integrate (make test)")
    sampler = REGISTRY[ours].make(STEPS, **RANGE, **options)
    evaluated = engine.Plan(sampler, DENOISER.preconditioning).sigmas  # with 2S's and Heun's second evaluations
    sigmas = torch.tensor([*evaluated, 0.0], dtype=torch.float64)
    module = module_of(name)
    noise = iter(NOISE)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(noise), raising=False)
    with float64(module) if wide else contextlib.nullcontext():
        expected = peer_draws(getattr(diffusers, name)(**their_options), sigmas, vp=name in VP)
    # A step rounds x, and so the D they read from it.
    assert_agree(drawn(sampler), expected, 2 * STEPS * FLOAT32 if name in ROUNDS_X and not wide else EXACT)


class Exact(Discrete):
    """`Discrete` whose coefficients are float64, as the peer's are in here; ours are float32 by contract."""

    def scaled_coefficients(self, sigma):
        return super().scaled_coefficients(self.levels()[self.nearest(sigma)])


ANCESTRAL = [
    ("DDIMScheduler", 0.0, "ddim", {}),
    ("DDIMScheduler", 0.7, "ddim", {"eta": 0.7}),
    ("DDPMScheduler", None, "ddpm", {}),  # variance_type="fixed_small", the posterior's
]


@pytest.mark.parametrize(("name", "eta", "ours", "options"), ANCESTRAL, ids=str)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v", False), ("sample", False), ("v", True), ("sample", True)],
    ids=str,
)
@pytest.mark.parametrize("preconditioning", [Discrete, Exact], ids=["float32", "float64"])
def test_discrete_time(name, eta, ours, options, spacing, prediction, zero_snr, preconditioning, monkeypatch):
    """The network is called with s x and with their timestep t, our t - 1."""
    pre = preconditioning(prediction=prediction, zero_snr=zero_snr)
    denoiser = wavy(pre, SHAPE).double()
    steps = STEPS + 1  # with 7, linspace has halves to round: see test_diffusers_schedules
    sampler = REGISTRY[ours].make(steps, discretization=spacing, **options)
    scheduler = getattr(diffusers, name)(
        clip_sample=False,
        prediction_type="v_prediction" if prediction == "v" else prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing=spacing,
    )
    betas = discrete.betas()
    # Theirs in float32 is compared in test_diffusers_schedules.
    scheduler.alphas_cumprod = discrete.alpha_bar(discrete.zero_terminal_snr(betas) if zero_snr else betas)
    scheduler.set_timesteps(steps)
    noise = NOISE[:steps].clone()
    noise[-1] = 0  # DDPMScheduler clamps the last step's variance of 0 to 1e-20, unless it is at t = 0
    draws = iter(noise)
    monkeypatch.setattr(module_of(name), "randn_tensor", lambda *_, **__: next(draws))
    ts = scheduler.timesteps.tolist()
    start = scheduler.alphas_cumprod[ts[0]]
    x = LATENTS * (1 - start).sqrt()
    for t, t_next in zip(scheduler.timesteps, [*ts[1:], -1], strict=True):
        # DDIMScheduler takes T // steps for the gap whatever the spacing; this gives it the gap there is.
        if eta is not None:
            scheduler.num_inference_steps = Fraction(1000, t.item() - t_next)
        with torch.no_grad():
            output = denoiser.model(x, t.float().expand(len(x)))
        x = scheduler.step(output, t, x, **({} if eta is None else {"eta": eta})).prev_sample
    # c_skip and c_out of the other predictions are rounded to float32, once a step.
    rounded = preconditioning is Discrete and prediction != "sample"
    assert_agree(drawn(sampler, denoiser), x, steps * FLOAT32 if rounded else EXACT)


@pytest.mark.parametrize("discretization", ["edm", "ve"])
def test_reverse_diffusion(discretization, monkeypatch):
    """ScoreSdeVeScheduler's predictor, which is given the score."""
    sampler = REGISTRY["euler_maruyama"].make(STEPS, **RANGE, discretization=discretization)
    sigmas = sampler.levels.sigmas(DENOISER.preconditioning)
    scheduler = diffusers.ScoreSdeVeScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.discrete_sigmas = sigmas[:-1].flip(0)
    noise = iter(NOISE)
    monkeypatch.setattr(module_of("ScoreSdeVeScheduler"), "randn_tensor", lambda *_, **__: next(noise))
    x = LATENTS * sigmas[0]
    for i, sigma in enumerate(sigmas[:-1]):
        t = (STEPS - 1 - i + 0.5) / (STEPS - 1)  # which they round down to the level STEPS - 1 - i
        output = scheduler.step_pred((D(x, sigma) - x) / sigma**2, t, x)
        x = output.prev_sample
    assert_agree(drawn(sampler), output.prev_sample_mean)  # as their pipeline, the last step adds no noise
