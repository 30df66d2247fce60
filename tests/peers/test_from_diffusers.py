"""UNets of diffusers, objects and folders, as our networks: against the UNet called by hand, and their own sampling."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import engine
from engine.adapters import from_diffusers
from engine.cli import cli
from engine.preconditioning import EDM, Discrete
from tests.peers.compare import FLOAT32

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (make test)")
from tests.peers.models import DIM, SHAPE, TOKENS, conditional_unet, unet  # noqa: E402

X = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
CLASSES = 5


def by_hand(model, scheduler, t, **given):
    """D of x = X / s at their timestep t, from their alphas_cumprod and their formulas."""
    bar = scheduler.alphas_cumprod[t].double()
    with torch.no_grad():
        output = model(X, t, **given).sample[:, : SHAPE[0]].double()
    a, b = bar.sqrt(), (1 - bar).sqrt()
    prediction = scheduler.config.prediction_type
    D = {"epsilon": (X - b * output) / a, "v_prediction": a * X - b * output, "sample": output}[prediction]
    return D, b / a


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_start": 3e-4, "beta_end": 0.017, "num_train_timesteps": 400},
        {"trained_betas": [0.01 * i for i in range(1, 51)]},
    ],
    ids=str,
)
def test_denoiser(prediction, options):
    model = unet(out_channels=6)
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, **options)
    denoiser = from_diffusers(model, scheduler)
    assert denoiser.img_shape == SHAPE
    assert denoiser.preconditioning.betas == tuple(scheduler.betas.tolist())
    for t in (0, 20, len(scheduler.betas) - 10):
        expected, sigma = by_hand(model, scheduler, t)
        D = denoiser(X.double() * (1 + sigma**2).sqrt(), sigma)
        # Float32 in both; x / s is rounded in the last bits, and 1 / s amplifies what the network makes of it.
        torch.testing.assert_close(D.double(), expected, rtol=0, atol=64 * FLOAT32 * float(sigma + 1) * 8)


def test_zero_terminal_snr_and_edm():
    zero = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    pre = from_diffusers(unet(), zero).preconditioning
    assert pre.sigma_max == float("inf")
    assert isinstance(pre, Discrete)
    edm = from_diffusers(unet(), diffusers.EDMEulerScheduler(sigma_data=0.7, sigma_max=50.0))
    assert edm.preconditioning == EDM(0.002, 50.0, 0.7)


def test_classes():
    model, scheduler = unet(num_class_embeds=CLASSES), diffusers.DDPMScheduler()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    denoiser = from_diffusers(model, scheduler)
    labels = torch.eye(CLASSES)[[3, 1]]
    assert denoiser.label_dim == CLASSES
    with torch.no_grad():
        t = torch.tensor([7.0, 7.0])
        expected = model.eval()(X, 7, class_labels=torch.tensor([3, 1])).sample
        assert torch.equal(denoiser.model(X, t, labels), expected)  # an embedding looked up
        soft = denoiser.model(X, t, labels.mean(0, keepdim=True).expand(2, -1))
    assert not torch.allclose(soft, expected, atol=1e-4)
    sampler = engine.samplers.ddim(steps=3, discretization="trailing")
    images = engine.sample(denoiser, seeds=[1, 2], class_labels=[4, 0], sampler=sampler)
    assert not torch.equal(images, engine.sample(denoiser, seeds=[1, 2], class_labels=[3, 0], sampler=sampler))
    assert model.class_embedding.__class__ is torch.nn.Embedding  # the caller's own is as it was
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert denoiser.model.unet.conv_in.weight is model.conv_in.weight


def test_mode_of_the_caller_s_module_is_not_changed():
    model = unet().train()
    assert not from_diffusers(model, diffusers.DDPMScheduler()).model.training
    assert model.training


def test_embeddings():
    model, scheduler = conditional_unet(), diffusers.DDPMScheduler()
    prompt = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(2))
    nothing = torch.full([TOKENS * DIM], 0.5)
    denoiser = from_diffusers(model, scheduler, tokens=TOKENS, null_labels=nothing)
    labels = prompt.flatten(1)
    t = torch.tensor([7.0, 7.0])
    with torch.no_grad():
        expected = model(X, 7, encoder_hidden_states=prompt).sample
        assert torch.equal(denoiser.model(X, t, labels), expected)
        empty = model(X, 7, encoder_hidden_states=nothing.reshape(1, TOKENS, DIM).expand(2, -1, -1)).sample
        assert torch.equal(denoiser.model(X, t, torch.zeros_like(labels)), empty)
    options = {"seeds": [1, 2], "sampler": engine.samplers.ddim(steps=2, discretization="trailing")}
    guided = engine.sample(denoiser, class_labels=labels, guidance=engine.guidance.ClassifierFree(3.0), **options)
    assert not torch.equal(guided, engine.sample(denoiser, class_labels=labels, **options))
    for wrong, said in [(None, "None"), (3, "a int"), ([1, 2], "a list")]:
        with pytest.raises(ValueError, match=rf"class_labels is {said}; allowed: embeddings, a float tensor \[N, 64\]"):
            engine.sample(denoiser, class_labels=wrong, **options)
    with pytest.raises(ValueError, match="negative is 1; allowed: None, for a network whose labels are embeddings"):
        engine.Engine(denoiser, guidance=engine.guidance.ClassifierFree(2.0, negative=1))


def test_same_images_as_ddim():
    """Their DDIM with the UNet itself, and our sampler with the UNet wrapped."""
    model = unet().double()
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False, prediction_type="v_prediction")
    scheduler.set_timesteps(8)
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = latents * (1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]).double().sqrt()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
    got = engine.sample(
        from_diffusers(model, scheduler),
        latents=latents,
        sampler=engine.samplers.ddim(steps=8, discretization="trailing"),
        output_dtype=torch.float64,
    )
    # Their alphas_cumprod and our c_skip, c_out are float32.
    torch.testing.assert_close(got, x, rtol=0, atol=32 * FLOAT32 * x.abs().max().item())


@pytest.mark.parametrize("make", [unet, conditional_unet], ids=["unconditional", "conditional"])
@pytest.mark.parametrize("layout", ["pipeline", "flat", "unet in a pipeline"])
def test_load(make, layout, tmp_path):
    model, scheduler = make(), diffusers.DDIMScheduler(prediction_type="v_prediction", beta_end=0.01)
    flat = layout == "flat"
    model.save_pretrained(tmp_path if flat else tmp_path / "unet")
    scheduler.save_pretrained(tmp_path if flat else tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    if make is conditional_unet and layout == "pipeline":
        (tmp_path / "text_encoder").mkdir()
        (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"max_position_embeddings": TOKENS}))
    denoiser = engine.load(tmp_path / "unet" if layout == "unet in a pipeline" else tmp_path)
    tokens = None if make is unet else TOKENS if layout == "pipeline" else 77
    expected = from_diffusers(model, scheduler, tokens=tokens)
    assert denoiser.preconditioning == expected.preconditioning
    assert denoiser.label_dim == expected.label_dim == (tokens or 0) * DIM
    assert not denoiser.training
    labels = torch.linspace(-1, 1, denoiser.label_dim).expand(2, -1) if tokens else None
    with torch.no_grad():
        assert torch.equal(denoiser(X, 0.5, labels), expected(X, 0.5, labels))


def test_pickled_weights_are_not_read(tmp_path):
    unet().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"has no diffusion_pytorch_model.safetensors; other files of weights"):
        engine.load(tmp_path)


def test_weights_that_do_not_fit(tmp_path):
    """Diffusers fills what is missing with random numbers."""
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if key != "conv_in.bias"}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"tensors do not fit the config, first of 1: conv_in\.bias"):
        engine.load(tmp_path)
    save_file(tensors | {"more": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="tensors do not fit the config, first of 1: more"):
        engine.load(tmp_path)
    save_file(tensors | {"conv_in.bias": torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"unet: (tensors do not fit|diffusers cannot read it: ).*conv_in\.bias"):
        engine.load(tmp_path)
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="unet: diffusers cannot read it: "):
        engine.load(tmp_path)


def test_without_diffusers(tmp_path, monkeypatch):
    unet().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers .*: pip install 'edm-engine\[diffusers\]'"):
        engine.load(tmp_path)


def test_folders_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    with pytest.raises(ValueError, match="_class_name is 'Transformer2DModel'; allowed: UNet2DModel"):
        engine.load(tmp_path)
    (tmp_path / "config.json").write_text("no")
    with pytest.raises(ValueError, match=r"config.json is no JSON file that can be read"):
        engine.load(tmp_path)
    unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no scheduler_config.json, nor has ../scheduler"):
        engine.load(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "Unknown"}')
    with pytest.raises(ValueError, match="_class_name is 'Unknown'; allowed: one of diffusers"):
        engine.load(tmp_path)


FLOW = {"prediction_type": "flow_prediction"}
NOT_READ = [
    (diffusers.FlowMatchEulerDiscreteScheduler, {}, "FlowMatchEulerDiscreteScheduler has neither"),
    (
        diffusers.DPMSolverMultistepScheduler,
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        "use_flow",
    ),
    (diffusers.UniPCMultistepScheduler, FLOW, "prediction_type is 'flow_prediction'"),
    (diffusers.CMStochasticIterativeScheduler, {}, "scheduler is a CMStochasticIterativeScheduler; allowed: those of"),
    (diffusers.LCMScheduler, {}, "scheduler is a LCMScheduler; allowed: those of models that denoise"),
    (diffusers.EulerDiscreteScheduler, {"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
    (diffusers.EDMEulerScheduler, {"prediction_type": "v_prediction"}, "'v_prediction' with sigma_data"),
    (diffusers.ScoreSdeVeScheduler, {}, "ScoreSdeVeScheduler has neither"),
]


@pytest.mark.parametrize(("kind", "options", "message"), NOT_READ)
def test_schedulers_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(unet(), kind(**options))


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (lambda: torch.nn.Linear(1, 1), {}, "model is a Linear; allowed: UNet2DModel"),
        (unet, {"scheduler": None}, "scheduler is None"),
        (unet, {"scheduler": 3}, "scheduler is a int"),
        (unet, {"tokens": 4}, "tokens is 4; allowed: None"),
        (unet, {"null_labels": torch.ones(3)}, "null_labels are given"),
        (conditional_unet, {"tokens": 0}, "tokens is 0"),
        (conditional_unet, {"tokens": 2, "null_labels": torch.ones(3)}, r"null_labels is \[3\]; allowed: .* 32 num"),
        (lambda: conditional_unet(num_class_embeds=3), {}, "num_class_embeds is 3"),
        (lambda: unet(class_embed_type="timestep"), {}, "class_embed_type is 'timestep'"),
        (lambda: unet(out_channels=4), {}, "in_channels is 3, out_channels 4"),
        (lambda: unet(time_embedding_type="fourier"), {}, "time_embedding_type is 'fourier'"),
        (lambda: unet(sample_size=None), {}, "img_shape is None"),
    ],
)
def test_refused(make, given, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(make(), **({"scheduler": diffusers.DDPMScheduler()} | given))


def test_importing_engine_does_not_import_diffusers():
    code = "import sys, engine; engine.load('fashion-mnist'); sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_info_of_a_folder(tmp_path):
    """What `edm-engine info` prints of a pipeline's folder, and of a network whose labels are embeddings."""
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "plain")
    conditional_unet().save_pretrained(tmp_path / "conditional")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "conditional")
    plain, conditional = (CliRunner().invoke(cli, ["info", str(tmp_path / n)]) for n in ("plain", "conditional"))
    assert plain.exit_code == 0, plain.output
    assert "images of 3x8x8\n" in plain.output
    assert "GFLOP an image and evaluation" in plain.output
    assert "Discrete(" in plain.output
    assert conditional.exit_code == 0, conditional.output
    assert "numbers of embeddings" in conditional.output
