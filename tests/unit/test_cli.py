"""The command line, as a user types it."""

import json
import sys
import time

import click
import numpy as np
import pytest
import torch
from PIL import Image

import engine
from engine import cli
from engine.cli.types import IntRange
from tests.unit.test_metrics import Inception


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["edm-engine", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def complaint(capsys) -> str:
    """All that was said on stderr, if it is one line as `main` says it."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edm-engine: ")
    return line


def test_sample_writes_pngs_named_by_seed(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--seeds", "0-2,9", "--class", "3,5", "--steps", "2", "--batch", "3", "--out", out, "--grid"]
    assert run(monkeypatch, "sample", "--model", "fashion-mnist", *options) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "000000.png", "000001.png", "000002.png", "000009.png", "checksums.sha256", "grid.png", "settings.json",
    ]  # fmt: skip
    denoiser = engine.load("fashion-mnist")
    sampler = engine.samplers.edm(2)
    expected = torch.cat([
        engine.sample(denoiser, seeds=[0, 1, 2], class_labels=[3, 5, 3], sampler=sampler),
        engine.sample(denoiser, seeds=[9], class_labels=[5], sampler=sampler),
    ])  # fmt: skip
    for seed, image in zip([0, 1, 2, 9], engine.to_uint8(expected), strict=True):
        assert np.array_equal(np.asarray(Image.open(out / f"{seed:06d}.png")), image[0].numpy())
    settings = json.loads((out / "settings.json").read_text())
    assert settings["seeds"] == [0, 1, 2, 9]
    assert settings["steps"] == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("4 images in ")
    assert "images/s" in said.out
    assert "sampling" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3-1"], "'3-1'; allowed: integers and rising ranges"),
        (["--seeds", "²"], "'²'; allowed: integers and rising ranges"),
        (["--seeds", "9" * 5000], "allowed: integers and rising ranges"),
        (["--seeds", "0-18446744073709551616"], "'0-18446744073709551616' names too many; allowed: at most 10,000,000"),
        (["--seeds", "5,0-9999999"], "names too many"),
        (["--seeds", "18446744073709551616"], "seeds contains 18446744073709551616; allowed"),
        (["--seeds", "0,0"], "seeds contains 0 more than once"),
        (["--class", "10"], "class_labels contains 10; allowed: 0 to 9"),
        (["--steps", "0"], "steps is 0; allowed: an integer from 1"),
        (["--model", "nothing"], "'nothing' is neither a file nor a shipped network"),
        (["--backend", "tpu"], "backend is 'tpu'; allowed: auto"),
        (["--batch", "0"], "batch_size is 0; allowed: an integer from 1"),
        (["--device", "foo"], "device is 'foo'; allowed: 'cpu'"),
        (["--bogus"], "No such option '--bogus'"),
        (["--sampler", "bogus"], "'bogus' is not one of"),
    ],
)
def test_bad_input_is_one_line_and_status_2(monkeypatch, tmp_path, capsys, arguments, message):
    assert run(monkeypatch, "sample", "--model", "fashion-mnist", "--out", tmp_path / "out", *arguments) == 2
    assert message in complaint(capsys)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "sampler", "noise"),
    [
        (["--sampler", "ddim", "--steps", "2", "--eta", "0.5"], engine.samplers.ddim(2, eta=0.5), "philox"),
        (
            ["--sampler", "ablation", "--steps=2", "--disc=vp", "--schedule=vp", "--scaling=vp", "--solver=euler"],
            engine.samplers.ablation(2, discretization="vp", schedule="vp", scaling="vp", solver="euler"),
            "philox",
        ),
        (
            ["--steps=2", "--S_churn=2", "--S_min=0.01", "--S_max=90", "--S_noise=1.01", "--noise=torch"],
            engine.samplers.edm(2, S_churn=2, S_tmin=0.01, S_tmax=90, S_noise=1.01),
            "torch",
        ),
    ],
    ids=["ddim", "ablation", "as published"],
)
def test_every_sampler_from_the_command_line(monkeypatch, tmp_path, options, sampler, noise):
    out = tmp_path / "out"
    arguments = ["--seeds", "1000-1001", "--class", "3", "--out", out, "--subdirs"]
    assert run(monkeypatch, "sample", "--model", "fashion-mnist", *arguments, *options) == 0
    drawn = engine.sample(
        engine.load("fashion-mnist"), seeds=[1000, 1001], class_labels=3, sampler=sampler, noise=noise
    )
    for seed, image in zip([1000, 1001], engine.to_uint8(drawn), strict=True):
        assert np.array_equal(np.asarray(Image.open(out / f"001000/{seed:06d}.png")), image[0].numpy())


def test_a_model_of_discrete_timesteps(monkeypatch, tmp_path, capsys):
    network = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    kind = {"class_name": "DiscretePrecond", "schedule": "cosine", "zero_snr": True, "prediction": "v"}
    denoiser = engine.Denoiser.from_config(kind | network | {"img_resolution": 8, "img_channels": 3, "label_dim": 0})
    model = tmp_path / "model.safetensors"
    engine.save(denoiser, model)
    out, options = tmp_path / "out", ["--sampler", "ddim", "--steps", "3", "--eta", "0", "--timesteps", "trailing"]
    assert run(monkeypatch, "sample", "--model", model, "--seeds", "5", "--out", out, *options) == 0
    sampler = engine.samplers.ddim(3, discretization="trailing")
    drawn = engine.to_uint8(engine.sample(engine.load(model), seeds=[5], sampler=sampler))
    assert np.array_equal(np.asarray(Image.open(out / "000005.png")), drawn[0].permute(1, 2, 0).numpy())
    capsys.readouterr()
    assert run(monkeypatch, "plan", "--model", model, *options) == 0
    assert "inf" in capsys.readouterr().out


def test_an_option_of_another_sampler_is_refused(monkeypatch, tmp_path, capsys):
    """By the flags that are typed."""
    arguments = ["sample", "--model", "fashion-mnist", "--out", tmp_path / "out", "--sampler"]
    assert run(monkeypatch, *arguments, "edm", "--eta", "1") == 2
    assert "--eta is not an option of the sampler edm; it takes --steps, --sigma-min" in complaint(capsys)
    assert run(monkeypatch, *arguments, "ddim", "--S-churn", "1") == 2
    assert "--S-churn is not an option of the sampler ddim; it takes --steps" in complaint(capsys)


def test_plans_and_samplers_are_printed(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "samplers") == 0
    listed = capsys.readouterr().out
    assert all(name in listed and entry.source in listed for name, entry in engine.samplers.REGISTRY.items())
    table = tmp_path / "plan.csv"
    assert run(monkeypatch, "plan", "--sampler", "unipc", "--steps", "4", "--table", table) == 0
    assert "4 steps, 4 network evaluations" in capsys.readouterr().out
    assert run(monkeypatch, "plan", "--table", "--sampler", "unipc", "--steps", "4") == 0
    assert capsys.readouterr().out == table.read_text()
    rows = np.genfromtxt(table, delimiter=",", names=True)
    expected = engine.Plan(engine.samplers.unipc(4), engine.preconditioning.EDM()).table
    assert np.array_equal(np.array(rows.tolist()), expected, equal_nan=True)


def test_evaluate_prints_one_table(monkeypatch, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert run(monkeypatch, "evaluate", "--images", "20", "--steps", "3", "--json", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" of 2") for line in lines[:10])
    recognised = sum(int(line.split()[-3]) for line in lines[:10])
    assert lines[10] == f"recognised {recognised} of 20 ({5 * recognised:.1f}%)"
    assert "20 images against fashion-mnist-train (60,000 images)" in lines[12]
    record = json.loads(out.read_text())
    assert (record["settings"]["images"], record["settings"]["steps"], record["nfe"]) == (20, 3, 5)
    measures = {m["name"].strip(): m for m in record["measures"]}
    assert list(measures) == ["recognised", "Frechet distance", "of the 10,000 real test images",
                              "inception-style score", "precision", "recall", "images/s"]  # fmt: skip
    for name, m in measures.items():
        (line,) = (each for each in lines[12:] if each.strip().startswith(name))
        assert (m["missing"] if m["value"] is None else f"{m['value']:.4g}") in line
    found = measures["Frechet distance"]
    assert found["low"] < found["value"] < found["high"]
    assert measures["recognised"]["value"] == recognised / 20


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_evaluate_of_another_network(monkeypatch, tmp_path, capsys):
    """Its images are measured by the file and the reference that are given, or it is said what to give."""
    network = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    kind = {"class_name": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 8, "img_channels": 3}
    engine.save(engine.Denoiser.from_config(kind | network | {"label_dim": 0}), tmp_path / "model.safetensors")
    torch.jit.save(torch.jit.script(Inception()), tmp_path / "inception.pt")
    for seed, image in enumerate(torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))):
        engine.save_png(image * 0.5, tmp_path / "pngs" / f"{seed}.png")
    arguments = ["evaluate", "--model", tmp_path / "model.safetensors", "--images", "20", "--steps", "2"]
    inception = ["--inception", tmp_path / "inception.pt"]
    for given, message in [([], "the classifier knows Fashion-MNIST: give --inception"),
                           (inception, "--inception needs --reference")]:  # fmt: skip
        assert run(monkeypatch, *arguments, *given) == 2
        assert message in capsys.readouterr().err
    assert run(monkeypatch, *arguments, *inception, "--reference", tmp_path / "pngs") == 0
    whole = capsys.readouterr().out
    statistics = tmp_path / "pngs.safetensors"
    assert run(monkeypatch, "statistics", "--data", tmp_path / "pngs", *inception, "--out", statistics) == 0
    assert "30 images, 6 features of inception " in capsys.readouterr().out
    assert run(monkeypatch, *arguments, *inception, "--reference", statistics) == 0
    kept = capsys.readouterr().out

    def value(text, name):
        return next(line for line in text.splitlines() if line.startswith(name)).split()[2]

    assert value(whole, "Frechet distance") == value(kept, "Frechet distance")
    assert "recognised                                        -  the classifier knows Fashion-MNIST" in kept
    assert "precision                                         -  " in kept
    assert "has no images to measure" in kept
    assert "has no images to measure" not in whole


def test_int_ranges():
    assert IntRange().convert("0-3,7,20-21", None, None) == [0, 1, 2, 3, 7, 20, 21]
    last = 2**64 - 1
    assert IntRange().convert(f"{last - 1}-{last}", None, None) == [last - 1, last]
    started = time.perf_counter()
    with pytest.raises(click.BadParameter, match="names too many"):
        IntRange().convert("0-1000000000000", None, None)
    assert time.perf_counter() - started < 0.1


def test_version_and_help(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert engine.__version__ in capsys.readouterr().out
    assert run(monkeypatch, "--help") == 0
    assert "sample" in capsys.readouterr().out


def test_graphs_and_automatic_batches(monkeypatch, tmp_path, capsys):
    """What a CPU can do of them; an error of a capture or of memory is one line, as any other."""
    job = ["sample", "--model", "fashion-mnist", "--seeds", "1,2", "--steps", "2", "--out", tmp_path]
    assert run(monkeypatch, *job, "--batch", "auto", "--graph", "off") == 0
    assert "2 images in" in capsys.readouterr().out
    assert run(monkeypatch, *job, "--graph", "loop") == 2
    assert "graph is 'loop'; allowed here: 'auto', 'off': the device is cpu" in capsys.readouterr().err
    for wrong in ("0.5", "²", "many"):
        assert run(monkeypatch, *job, "--batch", wrong) == 2
        assert "allowed: an integer from 1, or auto" in capsys.readouterr().err
    for error in (engine.CaptureError("the network cannot be captured"), torch.OutOfMemoryError("out of memory")):

        def fail(*of, error=error, **named):
            raise error

        monkeypatch.setattr(engine.Engine, "stream_uint8", fail)
        assert run(monkeypatch, *job) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"edm-engine: {error}"
