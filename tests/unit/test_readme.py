"""The Python and shell blocks of the README and of docs/ run as written."""

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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language, pages=PAGES):
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", [page])], ids=lambda page: page.name)
def test_python_blocks_run(tmp_path, monkeypatch, page):
    """Those of a page one after the other, as a reader would type them."""
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))  # one block puts a sampler on the list
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python", [page]):
        exec(compile(block, page.name, "exec"), namespace)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert made >= MAKES[page.name]


# What a reader who typed all of a page would find.
MAKES = {
    "README.md": {"out/sneakers.png"},
    "guide.md": {"fashion.safetensors", "out/pipeline/model_index.json"},
    "large-jobs.md": {"out/shards/images-000000.tar", "out/shards/images-000001.tar"},
}


def anchors(page):
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "ARCHITECTURE.md", *PAGES], ids=lambda page: page.name)
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_readme_is_short():
    """A stranger reads it whole; the rest is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_block_about_checkpoints_runs(tmp_path, monkeypatch):
    """On small networks in files of these names and layouts."""
    monkeypatch.chdir(tmp_path)
    Path("edm-cifar10-32x32-cond-vp.pkl").write_bytes(dump(snapshot(denoiser("VPPrecond"))))
    torch.save(adm().state_dict(), "64x64_diffusion.pt")
    (block,) = [block for block in blocks("sh") if ".pkl" in block]
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
    commands = [block for block in blocks("sh") if "--seeds" in block]
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
