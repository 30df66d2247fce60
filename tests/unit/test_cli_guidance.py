"""Guidance, images, masks, latents and plots from the command line."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import engine
from engine import guidance
from engine.metrics import load_classifier
from tests.unit.test_cli import complaint, run

TWO = engine.samplers.edm(2)
SHARED = ["--model", "fashion-mnist", "--seeds", "4,5", "--class", "3", "--steps", "2"]


def pngs(folder, names=("000004", "000005")):
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in names])


def expected(**options):
    drawn = engine.sample(engine.load("fashion-mnist"), seeds=[4, 5], class_labels=3, sampler=TWO, **options)
    return engine.to_uint8(drawn)[:, 0].numpy()


def by_classifier(weight, classifier, highest):
    return guidance.ClassifierGuidance(weight, gradient=guidance.gradient_of(classifier), interval=(0.1, highest))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--guidance=1,3", "--negative=6"], lambda: guidance.ClassifierFree([1.0, 3.0], negative=6)),
        (
            ["--guidance=2", "--guide=fashion-mnist", "--guidance-rescale=0.5"],
            lambda: guidance.AutoGuidance(2.0, rescale=0.5, guide=engine.load("fashion-mnist")),
        ),
        (
            ["--guidance=9", "--classifier=untrained:7", "--guidance-interval=0.1,inf"],
            lambda: by_classifier(9.0, guidance.UntrainedClassifier(1, 10, 7), math.inf),
        ),
        (
            ["--guidance=1", "--classifier=fashion-mnist", "--guidance-interval=0.1,10"],
            lambda: by_classifier(1.0, lambda x, sigma: load_classifier()(x), 10.0),
        ),
    ],
    ids=["classifier-free", "auto", "misguided", "classifier"],
)
def test_guidance(monkeypatch, tmp_path, options, kind):
    assert run(monkeypatch, "sample", *SHARED, "--out", tmp_path, *options) == 0
    assert np.array_equal(pngs(tmp_path), expected(guidance=kind()))
    assert json.loads((tmp_path / "settings.json").read_text())["guidance"]


def test_a_network_without_label_dropout_is_named(monkeypatch, tmp_path, capsys):
    """It never saw images of no class, from which classifier-free guidance moves away; from a class it does."""
    for options, said in ((["--guidance=2"], True), (["--guidance=2", "--negative=6"], False), ([], False)):
        assert run(monkeypatch, "sample", *SHARED, *options, "--out", tmp_path) == 0
        assert ("without label dropout" in capsys.readouterr().err) == said


def test_an_image_a_mask_and_offset_noise(monkeypatch, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, :20] = 255
    for name, pixels in [("image", image), ("mask", mask)]:
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    given = ["--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--offset-noise", "0.1"]
    assert run(monkeypatch, "sample", *SHARED, "--sigma-max", "5", "--out", tmp_path / "out", *given) == 0
    drawn = pngs(tmp_path / "out")
    assert np.array_equal(drawn[:, :, :20], np.stack([image[:, :20]] * 2))
    start = (torch.from_numpy(image).float() - 127.5) / 127.5
    images = engine.sample(
        engine.load("fashion-mnist"), seeds=[4, 5], class_labels=3, sampler=engine.samplers.edm(2, sigma_max=5),
        image=start.expand(2, 1, 32, 32), mask=torch.from_numpy(mask) > 0, offset_noise=0.1,
    )  # fmt: skip
    assert np.array_equal(drawn, engine.to_uint8(images)[:, 0].numpy())


def test_images_inverted_are_drawn_again(monkeypatch, tmp_path, capsys):
    steps = ["--model", "fashion-mnist", "--class", "3", "--steps", "30"]
    assert run(monkeypatch, "sample", *steps, "--seeds", "0-1", "--out", tmp_path / "first", "--grid") == 0
    latents = tmp_path / "latents.safetensors"
    assert run(monkeypatch, "invert", *steps, "--image", tmp_path / "first", "--out", latents) == 0
    assert "latents of 2 images" in capsys.readouterr().out
    assert load_file(latents)["latents"].shape == (2, 1, 32, 32)
    assert run(monkeypatch, "sample", *steps, "--latents", latents, "--out", tmp_path / "again") == 0
    first, again = (pngs(tmp_path / n, ("000000", "000001")).astype(float) for n in ("first", "again"))
    assert np.abs(first - again).mean() < 2  # of 255; inversion and drawing each have their truncation error


def test_a_plan_as_a_picture(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    plot = tmp_path / "plan.png"
    assert run(monkeypatch, "plan", "--steps", "6", "--S_churn", "10", "--plot", plot) == 0
    with Image.open(plot) as picture:
        assert picture.size == (960, 900)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("plan", ["--plot", "plan.pdf"], "'plan.pdf'; allowed: a file of this kind, .png"),
        ("sample", ["--guide", "fashion-mnist"], "--guide needs --guidance"),
        ("sample", ["--guidance-rescale", "0.5"], "--guidance-rescale needs --guidance"),
        ("sample", ["--guidance=2", "--guide=x", "--negative=1"], "--negative and --guide exclude each other"),
        ("sample", ["--guidance=2", "--classifier=vgg"], "--classifier is 'vgg'; allowed: fashion-mnist"),
        ("sample", ["--guidance=a"], "'a'; allowed: one or more numbers"),
        ("sample", ["--guidance=2", "--guidance-interval=3"], "'3'; allowed: 2 numbers"),
        ("sample", ["--latents", "README.md"], "README.md"),
        ("sample", ["--latents", "docs"], "File 'docs' is a directory"),
        ("sample", ["--image", "docs/grid.png"], "allowed: [1, 32, 32]"),
        ("plan", ["--sampler", "rk45"], "rk45 is adaptive: it has no table"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, tmp_path, capsys, command, options, message):
    monkeypatch.chdir(engine.checkpoints.__path__[0] + "/../..")
    model = ["--model", "fashion-mnist", "--out", tmp_path / "out"] if command == "sample" else []
    assert run(monkeypatch, command, *model, *options) == 2
    assert message in complaint(capsys)
    assert not list(tmp_path.rglob("*.png"))
