"""`EngineScheduler` in loops and pipelines of diffusers, and `EnginePipeline`: the images of `engine.sample`."""

import inspect
from types import SimpleNamespace

import pytest
import torch

import engine
from engine.samplers import REGISTRY
from tests.helpers import Wavy
from tests.peers.compare import FLOAT32

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (make test)")
from engine.adapters.pipeline import EnginePipeline  # noqa: E402
from engine.adapters.scheduler import EngineScheduler  # noqa: E402
from tests.peers.models import SHAPE, unet  # noqa: E402

STEPS = 5
LATENTS = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(7))
SIGMAS = {"sigma_min": 0.05, "sigma_max": 20.0}


def loop(scheduler, model, x):
    """The loop of diffusers' pipelines, from where init_noise_sigma has been multiplied."""
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = model(scheduler.scale_model_input(x, t), t.float().expand(len(x)))
            output = output if isinstance(output, torch.Tensor) else output.sample
            x = scheduler.step(output, t, x).prev_sample
    return x


class Recorded:
    """The noise a loop draws, and where it stands among a plan's draws."""

    def __init__(self, scheduler, monkeypatch):
        self.noise = torch.zeros(scheduler.plan.draws, *LATENTS.shape, dtype=torch.float64)
        used = iter([int(row.draw) for row in scheduler.plan.rows[1:] if row.std != 0])
        generator = torch.Generator().manual_seed(11)

        def draw(shape, **options):
            drawn = torch.randn(shape, generator=generator, dtype=options["dtype"])
            self.noise[next(used)] = drawn
            return drawn

        monkeypatch.setattr("engine.adapters.scheduler.randn_tensor", draw)


def makes(name, timesteps):
    """Options of a sampler over timesteps, where it can visit some, or over other noise levels."""
    takes = "discretization" in inspect.signature(REGISTRY[name].make).parameters
    if timesteps and not takes:
        pytest.skip("visits no timesteps")
    return {} if timesteps else SIGMAS | ({"discretization": "edm"} if takes else {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.fused])
@pytest.mark.parametrize("timesteps", [True, False], ids=["timesteps", "sigmas"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_sampler_gives_the_engine_s_images(name, timesteps, prediction, dtype, monkeypatch):
    """To the bit, though a float32 sample is rounded at every step. network is elementwise: a UNet's convolutions
    choose their order of summation by memory layout.
    """
    scheduler = EngineScheduler(prediction_type=prediction, sampler=name, sampler_options=makes(name, timesteps))
    scheduler.set_timesteps(STEPS)
    denoiser = engine.Denoiser(Wavy().to(dtype), scheduler.preconditioning, img_shape=SHAPE).eval()
    recorded = Recorded(scheduler, monkeypatch)
    start = (LATENTS.double() * scheduler.init_noise_sigma).to(dtype)
    got = loop(scheduler, denoiser.model, start)
    expected = engine.sample(
        denoiser,
        latents=LATENTS.double() if dtype == torch.float64 else start.double() / scheduler.init_noise_sigma,
        noise=recorded.noise,
        sampler=scheduler.sampler_of(STEPS),
        output_dtype=dtype,
        backend="reference",
    )
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    assert any(row.std for row in scheduler.plan.rows) == bool(recorded.noise.any())


def test_scaled_states_are_rounded_only(monkeypatch):
    """With s(t) other than 1 a float32 sample is rounded before it is divided by s, the engine's state after."""
    options = SIGMAS | {"schedule": "vp", "scaling": "vp", "discretization": "vp", "S_churn": 1.0, "S_tmax": 10.0}
    scheduler = EngineScheduler(sampler="ablation", sampler_options=options)
    scheduler.set_timesteps(STEPS)
    denoiser = engine.Denoiser(Wavy(), scheduler.preconditioning, img_shape=SHAPE).eval()
    recorded = Recorded(scheduler, monkeypatch)
    got = loop(scheduler, denoiser.model, LATENTS * scheduler.init_noise_sigma)
    plan_of = {"sampler": scheduler.sampler_of(STEPS), "noise": recorded.noise}
    expected = engine.sample(denoiser, latents=LATENTS, **plan_of)
    assert recorded.noise.any()
    torch.testing.assert_close(got, expected, rtol=0, atol=256 * FLOAT32 * expected.abs().max().item())


def test_churn_before_the_first_evaluation():
    """Its noise is drawn with the latents: the same distribution, t_hat instead of t."""
    scheduler = EngineScheduler(sampler="edm", sampler_options=SIGMAS | {"S_churn": 2.0})
    scheduler.set_timesteps(STEPS)
    assert scheduler.init_noise_sigma == pytest.approx(scheduler.plan.sigmas[0])
    assert scheduler.plan.sigmas[0] > 1.3 * scheduler.plan.rows[0].begin_scale


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_in_their_pipeline(sampler, tmp_path):
    """DDPMPipeline as it ships, saved with our scheduler and read again."""
    scheduler = EngineScheduler.from_config(
        diffusers.DDIMScheduler(prediction_type="v_prediction").config, sampler=sampler
    )
    model = unet()
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, EngineScheduler)
    got = pipeline(2, torch.Generator().manual_seed(4), STEPS, output_type="pt").images
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, *SHAPE, generator=generator)
    noise = torch.stack([torch.randn(2, *SHAPE, generator=generator) for _ in range(STEPS)])
    expected = engine.sample(
        engine.load(tmp_path),
        latents=latents.double() / pipeline.scheduler.init_noise_sigma,  # that pipeline does not multiply by it
        noise=noise,
        sampler=scheduler.sampler_of(STEPS),
    )
    torch.testing.assert_close(got, (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=2e-5)


class NoCodes(torch.nn.Module):
    """An autoencoder whose latents are the image."""

    config = SimpleNamespace(scaling_factor=1.0)
    device, dtype = torch.device("cpu"), torch.float32

    def decode(self, latents):
        return SimpleNamespace(sample=latents)


def test_in_a_pipeline_that_scales(monkeypatch):
    """LDMPipeline as it ships: init_noise_sigma, scale_model_input, step; with Heun's two evaluations and churn."""
    options = SIGMAS | {"S_churn": 2.0, "S_tmax": 15.0}
    scheduler = EngineScheduler(prediction_type="v_prediction", sampler="edm", sampler_options=options)
    scheduler.set_timesteps(STEPS)  # it reads init_noise_sigma before it sets the timesteps
    recorded = Recorded(scheduler, monkeypatch)
    pipeline = diffusers.LDMPipeline(NoCodes(), unet(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    got = pipeline(2, torch.Generator().manual_seed(7), num_inference_steps=STEPS, output_type="np").images
    expected = engine.sample(
        engine.adapters.from_diffusers(unet(), scheduler),
        latents=LATENTS,
        noise=recorded.noise,
        sampler=scheduler.sampler_of(STEPS),
    )
    assert recorded.noise.any()
    expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=2e-5)


def test_guided_loops_double_the_input():
    """As Stable Diffusion's: two copies go through scale_model_input, the mixed output through step."""
    scheduler = EngineScheduler(sampler="edm", sampler_options=SIGMAS)
    scheduler.set_timesteps(STEPS)
    model = Wavy(label_dim=2)
    denoiser = engine.Denoiser(model, scheduler.preconditioning, img_shape=SHAPE).eval()
    labels = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).repeat_interleave(2, 0)
    x = LATENTS * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([x, x]), t)
            F, G = model(doubled, t.float().expand(4), labels).chunk(2)
            x = scheduler.step(3.0 * F - 2.0 * G, t, x, return_dict=False)[0]
    guidance = engine.guidance.ClassifierFree(3.0)
    sampler = scheduler.sampler_of(STEPS)
    expected = engine.sample(denoiser, latents=LATENTS, class_labels=1, guidance=guidance, sampler=sampler)
    torch.testing.assert_close(x, expected, rtol=0, atol=64 * FLOAT32 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_heun_as_theirs():
    """The interface of HeunDiscreteScheduler: as many timesteps, the same images."""
    model = Wavy().double()
    ours = EngineScheduler(sampler="ablation", timestep_spacing="leading", steps_offset=1)
    ours.set_timesteps(STEPS)
    theirs = diffusers.HeunDiscreteScheduler(
        beta_start=0.0001, beta_end=0.02, timestep_spacing="leading", steps_offset=1
    )
    theirs.set_timesteps(STEPS)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.order == theirs.order
    # Theirs are of alpha_bar in float32, near 1.
    torch.testing.assert_close(ours.sigmas[[0, -2, -1]], theirs.sigmas[[0, -2, -1]], rtol=1e-4, atol=0)
    start = LATENTS.double() * ours.init_noise_sigma
    got, expected = loop(ours, model, start), loop(theirs, model, start)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_timesteps_and_noise_of_ddim(spacing, zero_snr):
    """What a swapped scheduler is expected to keep."""
    given = {"timestep_spacing": spacing, "steps_offset": 1, "rescale_betas_zero_snr": zero_snr}
    theirs = diffusers.DDIMScheduler(prediction_type="v_prediction", **given)
    ours = EngineScheduler.from_config(theirs.config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert len(ours) == len(theirs)
    t = torch.tensor([999, 10])
    noise = torch.randn_like(LATENTS)
    torch.testing.assert_close(
        ours.add_noise(LATENTS, noise, t), theirs.add_noise(LATENTS, noise, t), rtol=0, atol=1e-4 if zero_snr else 4e-6
    )
    edm = diffusers.EDMEulerScheduler(sigma_max=40.0)  # sigma_data by default: a default of theirs, not of ours
    swapped = EngineScheduler.from_config(edm.config, sampler="edm")
    assert swapped.preconditioning == engine.preconditioning.EDM(0.002, 40.0, 0.5)
    swapped.set_timesteps(18)
    sigma = torch.tensor(swapped.plan.sigmas[4])
    noisy = swapped.add_noise(LATENTS, noise, swapped.timesteps[4].expand(2))
    torch.testing.assert_close(noisy, LATENTS + sigma.float() * noise, rtol=0, atol=1e-3)


def test_config_is_kept(tmp_path):
    scheduler = EngineScheduler(
        beta_end=0.01, sampler="ddim", sampler_options={"eta": 0.5}, timestep_spacing="linspace"
    )
    scheduler.save_pretrained(tmp_path)
    again = EngineScheduler.from_pretrained(tmp_path)
    assert again.preconditioning == scheduler.preconditioning
    assert again.sampler_of(7) == scheduler.sampler_of(7)
    assert diffusers.DDIMScheduler.from_config(again.config).config.beta_end == 0.01


def test_a_changed_sample_is_the_new_state():
    """As a pipeline that inpaints changes it; and from a later timestep on, as one that starts from an image."""
    scheduler = EngineScheduler()
    scheduler.set_timesteps(3)
    F = torch.full_like(LATENTS, 0.1)
    x = scheduler.step(F, scheduler.timesteps[0], LATENTS).prev_sample
    x += 1.0
    changed = scheduler.step(F, scheduler.timesteps[1], x).prev_sample
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(1)
    assert torch.equal(changed, scheduler.step(F, scheduler.timesteps[1], x).prev_sample)
    scheduler = EngineScheduler(sampler="edm")
    scheduler.set_timesteps(3)
    scheduler.scale_model_input(LATENTS, scheduler.timesteps[0])
    x = scheduler.step(F, scheduler.timesteps[0], LATENTS).prev_sample
    scheduler.scale_model_input(x, scheduler.timesteps[1])
    with pytest.raises(ValueError, match="sample is changed within a step"):
        scheduler.step(F, scheduler.timesteps[1], x + 1)
    with pytest.raises(ValueError, match=r"sample has shape \[1, 3, 8, 8\]; allowed: \[2, 3, 8, 8\], as before"):
        scheduler.step(F[:1], scheduler.timesteps[1], x[:1])
    with pytest.raises(ValueError, match=r"model_output has shape \[2, 3, 8, 8\]; allowed: that of the sample, \[1, 3"):
        scheduler.step(F, scheduler.timesteps[1], x[:1])
    with pytest.raises(ValueError, match="begin_index is 2; allowed: 0"):
        scheduler.set_begin_index(2)


def test_samples_handed_out_stay_as_they_are():
    scheduler = EngineScheduler()
    scheduler.set_timesteps(2)
    F = LATENTS.double()
    x = scheduler.step(F, scheduler.timesteps[0], F).prev_sample
    kept = x.clone()
    scheduler.step(F, scheduler.timesteps[1], x)
    assert torch.equal(x, kept)


def test_refused():
    with pytest.raises(ValueError, match=r"sampler is 'rk45'; allowed: .*'ddim'"):
        EngineScheduler(sampler="rk45")
    with pytest.raises(ValueError, match="sampler_options has 'steps'; ddim takes"):
        EngineScheduler(sampler_options={"steps": 3})
    with pytest.raises(ValueError, match="eta is 2"):
        EngineScheduler(sampler_options={"eta": 2})
    with pytest.raises(ValueError, match="has neither beta_schedule nor sigma_data"):
        EngineScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config)
    scheduler = EngineScheduler(sampler="edm")
    with pytest.raises(ValueError, match="call set_timesteps first"):
        _ = scheduler.init_noise_sigma
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="scale_model_input was not called before it; edm"):
        scheduler.step(LATENTS, scheduler.timesteps[0], LATENTS)
    with pytest.raises(ValueError, match=r"timestep is 5\.0; allowed: "):
        scheduler.scale_model_input(LATENTS, 5)
    loop(scheduler, Wavy(), LATENTS)
    with pytest.raises(ValueError, match="after the last"):
        scheduler.step(LATENTS, 5, LATENTS)
    scheduler = EngineScheduler()
    scheduler.set_timesteps(1)
    with pytest.raises(engine.NonFiniteError, match=r"samples \[0, 1\] became non-finite"):
        scheduler.step(LATENTS * torch.inf, 999, LATENTS)


@pytest.fixture
def folder(tmp_path):
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet(num_class_embeds=4), scheduler).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_pipeline(folder, tmp_path):
    """The images of `engine.sample`, to the bit, before and after it is saved."""
    pipeline = EnginePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = engine.sample(
        engine.load(folder),
        seeds=[5, 6],
        class_labels=[2, 1],
        sampler=engine.samplers.ddim(STEPS, discretization="leading"),
    )
    given = {"seeds": [5, 6], "class_labels": [2, 1], "num_inference_steps": STEPS}
    images = pipeline(**given, output_type="pt").images
    assert torch.equal(images, (expected / 2 + 0.5).clamp(0, 1))
    assert 0 < images.std() < 1
    array = pipeline(**given, output_type="np", return_dict=False)[0]
    assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), images)
    pil = pipeline(**given).images
    assert [image.size for image in pil] == [(8, 8), (8, 8)]
    pipeline.save_pretrained(tmp_path / "ours")
    again = EnginePipeline.from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**given, output_type="pt").images, images)
    assert engine.load(tmp_path / "ours").preconditioning == engine.load(folder).preconditioning


def test_pipeline_options(folder):
    pipeline = EnginePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    sampler = engine.samplers.edm(steps=2, S_churn=1.0)

    def drawn(seed):
        return pipeline(3, torch.Generator().manual_seed(seed), sampler=sampler, output_type="pt").images

    assert drawn(1).shape == (3, *SHAPE)
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    guided = pipeline(seeds=[1], class_labels=1, guidance=engine.guidance.ClassifierFree(4.0), sampler=sampler)
    assert len(guided.images) == 1
    for wrong, message in [
        ({"output_type": "jpg"}, "output_type is 'jpg'; allowed: 'pil', 'np', 'pt'"),
        ({"sampler": sampler, "num_inference_steps": 3}, "num_inference_steps is 3 and sampler is given"),
        ({"seeds": [1], "batch_size": 2}, "seeds are given with batch_size or generator"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_inference_steps": 0}, "steps is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline(**wrong)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has neither"):
        EnginePipeline(pipeline.unet, diffusers.FlowMatchEulerDiscreteScheduler())
