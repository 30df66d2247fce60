"""What a caller sees: shapes, dtypes, one image a seed whatever the batch, and errors of one line."""

import copy
import sys

import numpy as np
import pytest
import torch

import engine
from engine.networks import SongUNet
from engine.preconditioning import EDM, Direct
from engine.progress import progress_bar
from tests.helpers import Wavy, gaussian, small_unet, wavy

SAMPLER = engine.samplers.edm(steps=3)


def draw(denoiser=None, **arguments):
    return engine.sample(denoiser or wavy(EDM(), (2, 4, 6)), **({"sampler": SAMPLER, "seeds": [1, 2, 3]} | arguments))


def test_shapes_and_dtypes():
    images = draw()
    assert images.shape == (3, 2, 4, 6)
    assert images.dtype == torch.float32
    assert draw(output_dtype=torch.float64).dtype == torch.float64
    assert draw(wavy(EDM(), (5,))).shape == (3, 5)
    assert draw(wavy(EDM(), (2, 4, 3, 5))).shape == (3, 2, 4, 3, 5)


class Padded(Wavy):
    """Asks for 8 channels, of which the last six must be zeros."""

    def forward(self, x, *rest):
        assert x.shape[1] == 8
        assert not x[:, 2:].any()
        return super().forward(x[:, :2], *rest)


def test_a_network_that_wants_more_channels_gets_zeros():
    plain = wavy(EDM(), (2, 4, 6))
    padded = engine.Denoiser(Padded(), EDM(), img_shape=(2, 4, 6), net_channels=8)
    padded.model.load_state_dict(plain.model.state_dict())
    sampler = engine.samplers.edm(steps=3, S_churn=5)
    assert torch.equal(draw(padded, sampler=sampler), draw(plain, sampler=sampler))
    x = torch.randn(3, 2, 4, 6)
    assert torch.equal(padded(x, 2.0), plain(x, 2.0))
    with pytest.raises(ValueError, match=r"x has shape \[3, 3, 4, 6\]; allowed: \[B, 2, 4, 6\]"):
        padded(torch.randn(3, 3, 4, 6), 2.0)
    with pytest.raises(ValueError, match="net_channels is 1; allowed: an integer from 2"):
        engine.Denoiser(Padded(), EDM(), img_shape=(2, 4, 6), net_channels=1)


@pytest.mark.parametrize("churn", [0.0, 15.0])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seed_gives_the_same_bits_in_any_batch(churn, state_dtype, dtype):
    denoiser = wavy(EDM(), (3, 8, 8), label_dim=4)
    sampler = engine.samplers.edm(steps=4, S_churn=churn)
    seeds = [7, 2**64 - 1, 12, 0, 99]
    options = {"sampler": sampler, "state_dtype": state_dtype, "dtype": dtype}
    together = draw(denoiser, seeds=seeds, **options)
    assert torch.equal(draw(denoiser, seeds=seeds[::-1], **options).flip(0), together)
    assert torch.equal(draw(denoiser, seeds=seeds, batch_size=2, **options), together)
    for i, seed in enumerate(seeds):
        assert torch.equal(draw(denoiser, seeds=[seed], **options)[0], together[i])


def test_a_convolutional_network_in_any_batch():
    """The guarantee for whole images covers float32 UNets of torch's CPU convolutions one image at a time."""
    denoiser = small_unet()
    together = draw(denoiser, batch_size=1)
    assert torch.equal(draw(denoiser, seeds=[3, 1], batch_size=1), together[[2, 0]])
    torch.testing.assert_close(draw(denoiser), together, rtol=0, atol=2e-4)


def test_class_labels_in_all_their_forms():
    denoiser = wavy(EDM(), (2, 4, 6), label_dim=3)
    expected = draw(denoiser, class_labels=[2, 2, 2])
    assert torch.equal(draw(denoiser, class_labels=2), expected)
    assert torch.equal(draw(denoiser, class_labels=torch.tensor([2, 2, 2])), expected)
    assert torch.equal(draw(denoiser, class_labels=torch.tensor(2)), expected)
    assert torch.equal(draw(denoiser, class_labels=torch.eye(3)[[2, 2, 2]]), expected)
    assert torch.equal(draw(denoiser, class_labels=np.eye(3, dtype=np.float32)[[2, 2, 2]]), expected)
    assert torch.equal(draw(denoiser, class_labels=np.array([2, 2, 2])), expected)
    assert not torch.equal(draw(denoiser, class_labels=[2, 2, 1])[2], expected[2])
    assert torch.equal(draw(denoiser, class_labels=[2, 2, 1])[:2], expected[:2])


def test_without_a_class_each_seed_draws_its_own():
    denoiser = wavy(EDM(), (2, 4, 6), label_dim=3)
    drawn = engine.noise.uniform_int(range(300), 3)
    assert set(drawn) == {0, 1, 2}
    assert torch.equal(draw(denoiser, seeds=range(9)), draw(denoiser, seeds=range(9), class_labels=drawn[:9]))


def test_the_callers_denoiser_is_left_alone():
    denoiser = wavy(EDM(), (2, 4, 6)).train()
    before = copy.deepcopy(denoiser.state_dict())
    draw(denoiser, dtype=torch.bfloat16)
    draw(denoiser)
    assert denoiser.training
    assert denoiser.dtype == torch.float32
    assert all(torch.equal(before[key], value) for key, value in denoiser.state_dict().items())


def test_an_engine_repeats_itself_and_shares_parameters():
    denoiser = wavy(EDM(), (2, 4, 6))
    prepared = engine.Engine(denoiser, sampler=SAMPLER)
    first = prepared.sample(seeds=[1, 2])
    assert torch.equal(prepared.sample(seeds=[1, 2]), first)
    assert torch.equal(draw(denoiser, seeds=[1, 2]), first)
    assert prepared.denoiser.model.gain.data_ptr() == denoiser.model.gain.data_ptr()


def test_latents_are_scaled_inside():
    latents = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    same = draw(seeds=None, latents=latents)
    assert torch.equal(draw(seeds=[5, 6], latents=latents), same)
    normals = engine.noise.normal([5, 6], 0, (2, 4, 6))
    assert torch.equal(draw(seeds=[5, 6]), draw(seeds=None, latents=normals))


def test_stream_checks_the_whole_job_first():
    prepared = engine.Engine(wavy(EDM(), (2, 4, 6)), sampler=SAMPLER, batch_size=2)
    with pytest.raises(ValueError, match="seeds contains 1 more than once"):
        prepared.stream(seeds=[1, 2, 3, 1])
    for wrong in (0.5, 2):
        with pytest.raises(ValueError, match=f"^batches contains {wrong}; allowed: 0 to 1$"):
            list(prepared.stream(seeds=[5, 6, 7], batches=iter([wrong])))
    batches = list(prepared.stream(seeds=[5, 6, 7]))
    assert [positions for positions, _ in batches] == [(0, 1), (2,)]
    assert torch.equal(torch.cat([images for _, images in batches]), prepared.sample(seeds=[5, 6, 7]))


@pytest.mark.parametrize("whole", [torch.float64, torch.bfloat16, torch.float16])
def test_a_unet_that_was_cast_whole(whole):
    torch.manual_seed(0)
    network = SongUNet(16, 1, 1, label_dim=3, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    denoiser = engine.Denoiser(network, EDM()).eval().to(whole)
    expected = draw(engine.Denoiser(network, EDM()).to(whole), dtype=whole, class_labels=1)
    assert torch.equal(draw(denoiser, class_labels=1), expected)
    assert torch.isfinite(draw(denoiser, dtype=torch.float32, class_labels=1)).all()
    assert network.map_layer0.weight.dtype == whole  # the caller's own stays as it is
    prepared = engine.Engine(denoiser, dtype=torch.bfloat16).denoiser.model
    assert (prepared.dtype, prepared.map_layer0.weight.dtype) == (torch.bfloat16, torch.float32)


def test_progress_goes_to_stderr(capsys, monkeypatch):
    draw(progress=True)
    told = capsys.readouterr().err
    assert "sampling" in told
    assert told.count("eval") < 5  # a log is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(10**6, "eval", "sampling") as bar:
        assert bar.mininterval == 0.1


class Failing(Wavy):
    def forward(self, x, c_noise):
        out = super().forward(x, c_noise)
        out[1, 0, 0, 0] = torch.nan
        return out


def test_a_non_finite_sample_is_named():
    denoiser = engine.Denoiser(Failing(), EDM(), img_shape=(2, 4, 6))
    with pytest.raises(engine.NonFiniteError, match=r"seed 22 became non-finite at row 1 .* torch.float32"):
        draw(denoiser, seeds=[11, 22, 33])


class FailingOnce(Failing):
    """Raises when it is called again to find the layer."""

    calls = 0

    def forward(self, x, c_noise):
        FailingOnce.calls += 1
        if FailingOnce.calls > 5:
            raise RuntimeError("no more")
        return super().forward(x, c_noise)


def test_what_fails_while_the_layer_is_looked_for_hides_nothing():
    denoiser = engine.Denoiser(FailingOnce(), EDM(), img_shape=(2, 4, 6))
    with pytest.raises(engine.NonFiniteError, match=r"seed 22 became .*; its layer is not known, .* RuntimeError$"):
        draw(denoiser, seeds=[11, 22, 33])


class HalfBlind(Wavy):
    """Overflows in half precision, and only for the sample whose noise is large."""

    def forward(self, x, c_noise):
        out = super().forward(x, c_noise)
        large = (x.abs().amax((1, 2, 3)) > 2.4) & (c_noise > 1)  # c_noise > 1: the first evaluation only
        return torch.where(large[:, None, None, None], out * 1000 * 1000, out)


def test_rerun_in_float32():
    denoiser = engine.Denoiser(HalfBlind(), EDM(), img_shape=(2, 4, 6))
    with pytest.raises(engine.NonFiniteError, match=r"network dtype torch\.float16"):
        draw(denoiser, seeds=range(12), dtype=torch.float16)
    with pytest.warns(RuntimeWarning, match="run again in float32"):
        images = draw(denoiser, seeds=range(12), dtype=torch.float16, on_nonfinite="rerun")
    assert torch.isfinite(images).all()
    half, single = (draw(wavy(EDM(), (2, 4, 6)), seeds=range(12), dtype=d) for d in (torch.float16, torch.float32))
    from_half = (images == half).flatten(1).all(1)
    assert 0 < from_half.sum() < 12
    assert not torch.equal(half, single)
    alone = torch.cat([draw(denoiser, seeds=[s], dtype=torch.float32) for s in range(12)])
    assert torch.equal(images[~from_half], alone[~from_half])
    with pytest.raises(ValueError, match="on_nonfinite is 'ignore'; allowed: raise, rerun"):
        draw(denoiser, on_nonfinite="ignore")


class Cropped(Wavy):
    def forward(self, x, c_noise):
        return x[..., 1:]


LATENTS = torch.zeros(3, 2, 4, 6)
NOISE = torch.ones(3, 3, 2, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": None}, "seeds and latents are both None"),
        ({"seeds": []}, "seeds is empty; allowed: at least one seed"),
        ({"seeds": [3, 4, 3]}, "seeds contains 3 more than once"),
        ({"seeds": [-1]}, r"seeds contains -1; allowed: integers in \[0, 2\*\*64\)"),
        ({"seeds": [2**64]}, "seeds contains 18446744073709551616"),
        ({"seeds": [0.5]}, r"seeds is \[0.5\]; allowed: a sequence of integers"),
        ({"latents": LATENTS[:2]}, r"latents has shape \[2, 2, 4, 6\]; allowed: \[3, 2, 4, 6\]"),
        ({"latents": LATENTS.long()}, r"^latents is torch\.int64; allowed: a floating tensor$"),
        ({"latents": LATENTS + torch.inf}, "^latents holds infinity or NaN; allowed: finite numbers$"),
        ({"latents": LATENTS * 1j}, r"^latents is torch\.complex64; allowed: a floating tensor$"),
        (
            {"seeds": None, "latents": LATENTS[:0]},
            r"latents has shape \[0, 2, 4, 6\]; allowed: \['N', 2, 4, 6\], N from 1",
        ),
        ({"noise": NOISE * torch.nan}, "^noise holds infinity or NaN; allowed: finite numbers$"),
        ({"noise": NOISE * 1j}, r"^noise is torch\.complex64; allowed: a floating tensor$"),
        ({"batch_invariant": "no"}, "^batch_invariant is 'no'; allowed: False, True$"),
        ({"compile": "no"}, "^compile is 'no'; allowed: False, True$"),
        ({"noise": "pcg"}, "noise is 'pcg'; allowed: 'philox', 'torch', 'edm2' or a tensor"),
        (
            {"noise": torch.zeros(2, 3, 2, 4, 6)},
            r"noise has shape .*; allowed: \[3, 3, 2, 4, 6\], or more draws",
        ),
        ({"class_labels": 1}, "class_labels is 1; allowed: None, the network is unconditional"),
        ({"backend": "tpu"}, "backend is 'tpu'; allowed: auto, "),
        ({"noise": None}, "noise is None; allowed: 'philox', 'torch', 'edm2' or a tensor"),
        ({"latents": [[0.0]]}, "latents is a list; allowed: a tensor"),
        ({"device": "tpu"}, "device is 'tpu'; allowed: 'cpu', 'cuda', 'cuda:0' and so on"),
        ({"device": "cuda:99"}, "device is 'cuda:99'; allowed: 'cpu', or one of"),
        ({"sampler": "edm"}, "sampler is 'edm'; allowed: an engine.Sampler"),
        ({"batch_size": 2.5}, "batch_size is 2.5; allowed: an integer from 1"),
        ({"backend": "cuda"}, r"backend 'cuda' cannot run here\. cuda: .* \| cpu: .* \| triton: .*reference: can run"),
        (
            {"state_dtype": torch.float16},
            "state_dtype is torch.float16; allowed: torch.float64, torch.float32",
        ),
        ({"dtype": torch.int8}, "dtype is torch.int8; allowed: torch.float32"),
        ({"output_dtype": torch.uint8}, "output_dtype is torch.uint8; allowed: a floating dtype"),
        ({"batch_size": 0}, "batch_size is 0; allowed: an integer from 1"),
        ({"denoiser": Wavy()}, "denoiser is a Wavy; allowed: an engine.Denoiser"),
        (
            {"seeds": None, "latents": LATENTS, "sampler": engine.samplers.edm(3, S_churn=9)},
            "seeds is None; a sampler that adds noise needs seeds, or a noise tensor",
        ),
        (
            {"denoiser": engine.Denoiser(Cropped(), EDM(), img_shape=(2, 4, 6))},
            r"the network returned shape \[3, 2, 4, 5\] for an input of shape \[3, 2, 4, 6\]",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        draw(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "class_labels contains 3; allowed: 0 to 2"),
        ([0, 1], r"class_labels has 2 entries; allowed: one int, or one a sample \(3\)"),
        (torch.zeros(3, 4), r"class_labels has shape float32 \[3, 4\]; allowed: \[3, 3\], or integers \[3\]"),
        (torch.full((3, 3), torch.nan), r"class_labels holds infinity or NaN; allowed: finite"),
        ("cat", "class_labels is 'cat'; allowed: an int"),
        (1.5, "class_labels is 1.5; allowed: an int"),
        (True, "class_labels is True; allowed: an int"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        draw(wavy(EDM(), (2, 4, 6), label_dim=3), class_labels=labels)


def test_numbers_of_numpy_are_numbers():
    denoiser = wavy(EDM(), (2, 4, 6), label_dim=3)
    options = {"sampler": SAMPLER, "batch_size": np.int64(2), "buckets": [np.int32(1)]}
    guidance = engine.guidance.ClassifierFree(2.0, negative=np.int64(1))
    prepared = engine.Engine(denoiser, guidance=guidance, **options)
    assert type(prepared.batch_size) is int
    images = prepared.sample(seeds=[1, 2, 3], callback=lambda progress: None, callback_every=np.int64(2))
    plain = engine.Engine(denoiser, guidance=engine.guidance.ClassifierFree(2.0, negative=1), sampler=SAMPLER)
    assert torch.equal(images, plain.sample(seeds=[1, 2, 3]))


def test_labels_are_needed_without_seeds():
    with pytest.raises(ValueError, match="class_labels is None; without seeds"):
        draw(wavy(EDM(), (2, 4, 6), label_dim=3), seeds=None, latents=LATENTS)


class PublishedGenerator:
    """One torch.Generator a seed, as the published code wraps them."""

    def __init__(self, seeds):
        self.generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]

    def randn(self, shape, dtype=torch.float32):
        return torch.stack([torch.randn(shape, generator=g, dtype=dtype) for g in self.generators])

    def randint(self, high):
        return torch.stack([torch.randint(high, [], generator=g) for g in self.generators])


@pytest.mark.parametrize("order", ["torch", "edm2"])
@pytest.mark.parametrize("label", [None, 1])
def test_published_random_streams(order, label):
    """Latents, a label though a class is given, then float64 noise every step, or float32 noise where it is used."""
    denoiser, seeds, shape = wavy(EDM(), (2, 4, 6), label_dim=3), [5, 2**32 + 6, 7], (2, 4, 6)
    sampler = engine.samplers.edm(steps=6, S_churn=3, S_tmin=0.1, S_tmax=20)
    published = PublishedGenerator(seeds)
    latents, labels = published.randn(shape), published.randint(3)
    plan = engine.Plan(sampler, EDM())
    used = {row.draw for row in plan.rows if row.std != 0}
    assert 0 < len(used) < 6
    zeros = torch.zeros(3, *shape, dtype=torch.float64)
    if order == "torch":
        noise = [published.randn(shape, torch.float64) for _ in range(6)]
    else:
        noise = [published.randn(shape).double() if i in used else zeros for i in range(6)]
    expected = draw(
        denoiser, sampler=sampler, seeds=None, latents=latents, noise=torch.stack(noise),
        class_labels=labels if label is None else label,
    )  # fmt: skip
    got = draw(denoiser, sampler=sampler, seeds=seeds, noise=order, class_labels=label, batch_size=2)
    assert torch.equal(got, expected)
    with pytest.raises(ValueError, match=f"noise is '{order}', which draws latents from seeds"):
        draw(denoiser, seeds=None, latents=latents, noise=order, class_labels=0)


def test_inversion_finds_the_latents_again():
    denoiser = gaussian()
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    wide = {"output_dtype": torch.float64}
    sampler = engine.samplers.edm(80, sigma_min=0.01)
    images = engine.sample(denoiser, latents=latents, sampler=sampler, **wide)
    assert (engine.invert(denoiser, images, sampler=sampler, **wide) - latents).abs().max() < 1e-3
    exact = denoiser.model.solution(images, 0.01, 80.0) / 80
    samplers = [engine.samplers.edm(steps, sigma_min=0.01) for steps in (40, 80)]
    errors = [(engine.invert(denoiser, images, sampler=s, **wide) - exact).abs().max().item() for s in samplers]
    assert 3.5 < errors[0] / errors[1] < 4.5  # second order
    with pytest.raises(ValueError, match=r"allowed: samplers\.edm with S_churn=0"):
        engine.invert(denoiser, images, sampler=engine.samplers.edm(S_churn=1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (LATENTS.to(torch.uint8), r"^images is torch\.uint8; allowed: a floating tensor$"),
        (LATENTS / 0, "^images holds infinity or NaN; allowed: finite numbers$"),
        (LATENTS[0], r"^images has shape \[2, 4, 6\]; allowed: \['N', 2, 4, 6\], N from 1$"),
        (LATENTS[:0], r"^images has shape \[0, 2, 4, 6\]; allowed: \['N', 2, 4, 6\], N from 1$"),
        (LATENTS.tolist(), "^images is a list; allowed: a tensor"),
    ],
)
def test_images_that_cannot_be_inverted(images, message):
    with pytest.raises(ValueError, match=message):
        engine.invert(wavy(EDM(), (2, 4, 6)), images)


class Nothing(torch.nn.Module):
    def forward(self, x, sigma):
        return torch.zeros_like(x)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_latents_are_in_units_of_the_level_arrived_at(solver):
    """D = 0: x is proportional to sigma, which both solvers follow exactly."""
    denoiser = engine.Denoiser(Nothing(), Direct(), img_shape=(1,))
    image = torch.full((1, 1), 0.002)
    latents = engine.invert(denoiser, image, sampler=engine.samplers.edm(5, solver=solver))
    assert latents.item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("noise", ["philox", "torch"])
@pytest.mark.parametrize("scaling", ["none", "vp"])
def test_starting_from_an_image(noise, scaling):
    """With hardly any noise the image comes back; with very much it is forgotten."""
    denoiser = wavy(EDM(), (2, 4, 6))
    seeds, image = [1, 2, 3], torch.linspace(-1, 1, 144).reshape(3, 2, 4, 6)

    def start(sigma_max):
        sampler = engine.samplers.ablation(2, sigma_min=sigma_max / 2, sigma_max=sigma_max, scaling=scaling)
        drawn = draw(denoiser, seeds=seeds, sampler=sampler, image=image, noise=noise)
        again = [
            draw(denoiser, seeds=[s], sampler=sampler, image=image[i : i + 1], noise=noise) for i, s in enumerate(seeds)
        ]
        assert torch.equal(torch.cat(again), drawn)
        return drawn

    assert (start(1e-4) - image).abs().max() < 1e-3
    assert (start(0.1) - image).abs().max() > 0.05
    with pytest.raises(ValueError, match=r"image has shape \[2, 2, 4, 6\]; allowed: \[3, 2, 4, 6\]"):
        draw(denoiser, seeds=seeds, image=image[:2])


def test_inpainting_keeps_what_is_known_and_draws_the_rest():
    denoiser = wavy(EDM(), (2, 4, 6))
    image = torch.linspace(-1, 1, 3 * 48).reshape(3, 2, 4, 6)
    mask = torch.zeros(3, 1, 4, 6, dtype=torch.bool)
    mask[..., :3] = True
    for sampler in (SAMPLER, engine.samplers.edm(steps=4, S_churn=20), engine.samplers.dpmpp_2m(steps=4)):
        for backend in ("reference", "cpu"):
            drawn = draw(denoiser, sampler=sampler, image=image, mask=mask, backend=backend, batch_size=2)
            known = mask.expand(image.shape)
            assert torch.equal(drawn[known], image[known])
            free = draw(denoiser, sampler=sampler, image=image)
            assert torch.equal(drawn[~known], free[~known])  # an elementwise network: the rest does not notice
    everything = draw(denoiser, image=image, mask=torch.ones(4, 6, dtype=torch.bool))
    assert torch.equal(everything, image)


def test_offset_noise_shifts_channels_as_a_whole():
    denoiser = wavy(EDM(), (2, 4, 6))
    zero = engine.samplers.edm(steps=1)
    shift = []
    for seeds in ([1, 2], [2]):
        unit = engine.noise.normal(seeds, 0, (2, 4, 6)).double()
        offset = engine.noise.normal(seeds, 2**63 - 2, (2,)).double()[:, :, None, None]
        shift.append(unit + 0.3 * offset)
        drawn = draw(denoiser, seeds=seeds, sampler=zero, offset_noise=0.3)
        assert torch.equal(drawn, draw(denoiser, seeds=None, latents=shift[-1], sampler=zero))
    assert torch.equal(shift[0][1], shift[1][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(4, 6, dtype=torch.bool)}, "mask is given, and image is None"),
        (
            {"image": torch.zeros(3, 2, 4, 6), "mask": torch.ones(4, 6)},
            "mask is torch.float32.*; allowed: a bool tensor",
        ),
        ({"image": torch.zeros(3, 2, 4, 6), "mask": torch.ones(5, 6) > 0}, r"broadcasts to \[3, 2, 4, 6\]"),
        ({"image": torch.full((3, 2, 4, 6), torch.nan)}, "image holds infinity or NaN"),
        ({"image": torch.zeros(3, 2, 4, 6, dtype=torch.uint8)}, "image is torch.uint8; allowed: a floating tensor"),
        ({"image": torch.zeros(2, 2, 4, 6)}, r"image has shape \[2, 2, 4, 6\]; allowed: \[3, 2, 4, 6\]"),
        ({"offset_noise": -1.0}, "offset_noise is -1.0; allowed: a number from 0"),
        ({"offset_noise": 0.1, "seeds": None, "latents": torch.zeros(3, 2, 4, 6)}, "drawn from seeds"),
    ],
)
def test_bad_images_and_masks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)
