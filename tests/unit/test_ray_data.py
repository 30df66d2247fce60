"""A job on a local Ray: needs the extra ``ray``, which `make test-slow` installs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.files import locked
from tests.helpers import tree

pytestmark = pytest.mark.slow
_QUIET = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=_QUIET, capture_output=True, text=True)


def sample(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    job = ["--model", "fashion-mnist", "--seeds", "0-41", "--class", "0-9", "--batch", "8", "--steps", "2"]
    return run(folder, "-m", "engine", "sample", *job, "--format", "tar", "--shard", "20", *options)


@pytest.fixture(autouse=True)
def _ray():
    pytest.importorskip("ray", reason="ray is not installed; pip install 'edm-engine[ray]'")


def test_ray_draws_what_one_process_draws(tmp_path):
    assert sample(tmp_path, "--out", "one", "--threads", "1").returncode == 0
    done = sample(tmp_path, "--out", "ray", "--ray", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("42 images in ")
    assert tree(tmp_path / "ray") == tree(tmp_path / "one")
    shard = tmp_path / "ray" / "images-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    done = sample(tmp_path, "--out", "ray", "--ray", "--resume")  # as many workers as Ray likes
    assert "images-000002.tar was torn and is drawn anew" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 images in ")
    assert tree(tmp_path / "ray") == tree(tmp_path / "one")


def test_a_folder_that_another_process_draws_into_is_refused(tmp_path):
    with locked(tmp_path / "out"):
        done = sample(tmp_path, "--out", "out", "--ray")
    assert done.returncode == 2
    assert "into which another process is drawing" in done.stderr
    assert tree(tmp_path) == {}


def test_an_error_of_an_actor_is_one_line(tmp_path):
    """Here an actor that would draw other images than the driver."""
    program = """
import os
import engine
from engine.drawing import Drawing
from engine.ray_data import draw_on_ray

def make():
    prepared = engine.Engine(engine.load("fashion-mnist"), sampler=engine.samplers.edm(1))
    return Drawing(prepared, "out", seeds=[1, 2], settings={"process": os.getpid()})

try:
    draw_on_ray(make, workers=1)
except ValueError as error:
    print(error)
"""
    last = run(tmp_path, "-c", program).stdout.splitlines()[-1]
    assert last.startswith("process is ")
    assert last.endswith("out/settings.json has it")
