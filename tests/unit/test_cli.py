"""The command line, as a user types it."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import engine
from engine import cli
from engine.cli.types import IntRange


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["edm-engine", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_sample_writes_pngs_named_by_seed(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--seeds", "0-2,9", "--class", "3,5", "--steps", "2", "--batch", "3", "--out", out, "--grid"]
    assert run(monkeypatch, "sample", "--model", "fashion-mnist", *options) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "000000.png", "000001.png", "000002.png", "000009.png", "grid.png", "settings.json",
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
        (["--seeds", "0,0"], "seeds contains 0 more than once"),
        (["--class", "10"], "class_labels contains 10; allowed: 0 to 9"),
        (["--steps", "0"], "steps is 0; allowed: an integer from 1"),
        (["--model", "nothing"], "'nothing' is neither a file nor a shipped network"),
        (["--backend", "tpu"], "backend is 'tpu'; allowed: auto"),
        (["--batch", "0"], "batch_size is 0; allowed: an integer from 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(monkeypatch, tmp_path, capsys, arguments, message):
    assert run(monkeypatch, "sample", "--model", "fashion-mnist", "--out", tmp_path / "out", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.png"))


def test_evaluate_counts_what_the_classifier_recognises(monkeypatch, capsys):
    assert run(monkeypatch, "evaluate", "--images", "20", "--steps", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert all(line.endswith(" of 2") for line in lines[:10])
    assert int(lines[-1].split()[1]) == sum(int(line.split()[-3]) for line in lines[:10])


def test_int_ranges():
    assert IntRange().convert("0-3,7,20-21", None, None) == [0, 1, 2, 3, 7, 20, 21]


def test_version_and_help(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert engine.__version__ in capsys.readouterr().out
    assert run(monkeypatch, "--help") == 0
    assert "sample" in capsys.readouterr().out
