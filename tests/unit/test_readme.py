"""The README's Python and shell blocks run as written."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import engine
from engine.cli import cli
from engine.samplers import registry
from tests.edm_layout import dump, snapshot
from tests.helpers import tree
from tests.unit.test_edm_pickles import denoiser
from tests.unit.test_original_checkpoints import adm

ROOT = Path(__file__).parents[2]


def test_python_blocks_run(tmp_path, monkeypatch):
    """One after the other, as a reader would type them."""
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))  # one block puts a sampler on the list
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "out" / "sneakers.png").exists()
    assert sorted(path.name for path in (tmp_path / "out" / "shards").glob("*.tar")) == [
        "images-000000.tar",
        "images-000001.tar",
    ]
    assert namespace["images"].shape == (3, 1, 32, 32)


def test_files_it_shows_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def shell_blocks():
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_block_about_checkpoints_runs(tmp_path, monkeypatch):
    """On small networks in files of these names and layouts."""
    monkeypatch.chdir(tmp_path)
    Path("edm-cifar10-32x32-cond-vp.pkl").write_bytes(dump(snapshot(denoiser("VPPrecond"))))
    torch.save(adm().state_dict(), "64x64_diffusion.pt")
    (block,) = [block for block in shell_blocks() if ".pkl" in block]
    commands = [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 3
    for program, *arguments in commands:
        assert program == "edm-engine"
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
    assert isinstance(engine.load("cifar10.safetensors").preconditioning, engine.preconditioning.VP)
    assert isinstance(engine.load("adm.safetensors").preconditioning, engine.preconditioning.IDDPM)


@pytest.mark.slow
def test_the_blocks_about_large_jobs_run(tmp_path):
    """As a reader would type them; what different commands drew is compared to the bit."""
    commands = [block for block in shell_blocks() if "--seeds" in block]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with_ray = importlib.util.find_spec("ray") is not None
    for command in commands:
        if "--ray" not in command or with_ray:
            subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    with zipfile.ZipFile(tmp_path / "many" / "images.zip") as file:
        pngs = {name: file.read(name) for name in file.namelist() if name.endswith(".png")}
    drawn = {name: data for name, data in tree(tmp_path / "same").items() if name.endswith(".png")}
    assert len(pngs) == 256
    assert pngs == drawn
    if with_ray:
        assert tree(tmp_path / "many-on-ray") == tree(tmp_path / "many")
