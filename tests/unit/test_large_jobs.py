"""Large jobs in processes of their own: torchrun, kills, a full disk; always the bytes of the undisturbed run."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import engine
from engine import cli
from engine.outputs.base import PARTS
from tests.helpers import tree


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network small enough for thousands of images."""
    network = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    config = {"class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "label_dim": 3, **network}
    torch.manual_seed(0)
    denoiser = engine.Denoiser.from_config(config | {"attn_resolutions": []})
    for p in denoiser.parameters():
        nn.init.normal_(p, std=0.05)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    engine.save(denoiser, path)
    return path


def command(model, out, count, *options, start=("-m", "engine")):
    job = ["--model", model, "--seeds", f"0-{count - 1}", "--class", "0-2", "--batch", 16, "--steps", 2, "--threads", 1]
    return [sys.executable, *start, "sample", *map(str, job), "--out", str(out), *options]


def run(*arguments, **options):
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True, timeout=300)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "engine")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What one process draws, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(model, folder, 200).returncode == 0
    assert len(tree(folder)) == 200 + 2
    return tree(folder)


def test_torchrun_draws_what_one_process_draws(model, whole, tmp_path):
    done = run(model, tmp_path, 200, "--grid", start=TORCHRUN)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "images/s" in line]
    assert sum(int(line.split()[0]) for line in said) == 200
    assert len(said) == 2
    drawn = tree(tmp_path)
    assert len(drawn.pop("grid.png")) > 1000
    assert drawn == whole


def killed(model, folder, count, kills, format):
    """A job killed at ``kills`` random moments, resumed each time, and how often a kill came before its end."""
    moments, struck = random.Random(f"{kills} kills"), 0
    every = -(-count // 16)
    thresholds = sorted(moments.randint(0, every) for _ in range(kills))
    for batches in thresholds:
        child = subprocess.Popen(
            command(model, folder, count, "--resume", "--format", format),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while child.poll() is None and len(list((folder / PARTS).glob("[0-9]*"))) < batches:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        struck += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
    done = run(model, folder, count, "--resume", "--format", format)
    assert done.returncode == 0, done.stderr
    return struck


def test_three_kills(model, whole, tmp_path):
    assert killed(model, tmp_path, 200, 3, "png") >= 2
    assert tree(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("format", ["png", "zip"])
def test_twenty_kills(model, tmp_path, format):
    assert run(model, tmp_path / "whole", 2000, "--format", format).returncode == 0
    assert killed(model, tmp_path / "out", 2000, 20, format) >= 15
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_real_disk_that_is_full(model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no disk of its own: mount is not installed")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk of its own: {mounted.stderr.strip()}")
    prepared = engine.Engine(engine.load(model), sampler=engine.samplers.edm(2), batch_size=16)
    try:
        with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*/0000\d\d\.(png|sha256)'"):
            engine.draw_to(prepared, disk / "out", seeds=range(200))
        kept = {name: data for name, data in tree(disk / "out").items() if name.endswith(".png")}
        assert 10 < len(kept) < 200
        assert not [name for name in tree(disk / "out") if name.endswith(".tmp")]
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        engine.draw_to(prepared, disk / "out", seeds=range(200), resume=True)
        engine.draw_to(prepared, tmp_path / "whole", seeds=range(200))
        assert tree(disk / "out") == tree(tmp_path / "whole")
        assert kept.items() <= tree(disk / "out").items()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "out")
    monkeypatch.setattr(sys, "argv", ["edm-engine", "sample", "--model", "fashion-mnist", "--steps=1", "--out", out])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == f"edm-engine: [Errno 20] Not a directory: '{out}'\n"
