"""The profile of sampling: by nsys, which is made up here, and by torch.profiler."""

import json
import sys

import pytest

from bench import harness, profile_sample
from bench.traces import from_nsys
from tests.helpers import small_unet
from tests.unit.test_timeline import exported


def test_profile_of_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(profile_sample, "load", lambda name: small_unet(label_dim=2))
    profile_sample.main(["--device", "cpu", "--network", "tiny", "--batch", "2", "--batches", "2", "--steps", "2"])
    record = json.loads(next(tmp_path.glob("profile-*.json")).read_text())
    (row,) = record["rows"]
    assert (row["batches"], row["NFE"]) == (2, 3)
    assert "CPU's operations" in row["source"]
    assert row["launches per step"] == row["launches"] / 6 > 1
    assert "nsys is not used without a GPU" in record["notes"]
    assert record["sections"]["Top kernels"][0]["calls"] > 0
    assert "Top kernels" in capsys.readouterr().out


# Puts down an export made before, and what it was called with.
NSYS = """#!/bin/sh
for each; do case $each in --output=*) cp {database} ${{each#--output=}}.sqlite;; esac; done
echo "$@" > {said}
"""


def fake_nsys(folder, text):
    path = folder / "nsys"
    path.write_text(text)
    path.chmod(0o755)
    return [str(path), *profile_sample.NSYS[1:]]


def test_profile_is_this_command_again_under_nsys(monkeypatch, tmp_path):
    database = exported(tmp_path / "made-before.sqlite")
    text = NSYS.format(database=database, said=tmp_path / "said")
    monkeypatch.setattr(profile_sample, "NSYS", fake_nsys(tmp_path, text))
    assert profile_sample.by_nsys(["--device", "cuda", "--batch", "8"]) == from_nsys(database)
    said = (tmp_path / "said").read_text()
    assert said.startswith("profile -t cuda,nvtx --cuda-graph-trace=node ")
    assert said.endswith(f"{sys.executable} -m bench.profile_sample --device cuda --batch 8 --inside\n")


def test_profile_says_what_nsys_said(monkeypatch, tmp_path):
    text = "#!/bin/sh\necho 'no permission' >&2\nexit 1\n"
    monkeypatch.setattr(profile_sample, "NSYS", fake_nsys(tmp_path, text))
    with pytest.raises(RuntimeError, match="nsys ended with 1: no permission"):
        profile_sample.by_nsys(["--device", "cuda"])


def test_profile_without_nsys_says_so(monkeypatch):
    """For each reason; torch's profile itself is another test's."""
    monkeypatch.setattr(profile_sample, "from_torch", lambda work, device: "torch's")
    monkeypatch.setattr(profile_sample, "work", lambda options: None)
    options = profile_sample.arguments(["--device", "cuda"])
    monkeypatch.setattr(profile_sample.shutil, "which", lambda name: None)
    assert profile_sample.profiled(options, []) == ("torch's", "nsys is not installed.")
    monkeypatch.setattr(profile_sample.shutil, "which", lambda name: "/somewhere/nsys")
    monkeypatch.setattr(profile_sample, "by_nsys", _refuse)
    assert profile_sample.profiled(options, []) == ("torch's", "nsys ended with 1: no.")


def _refuse(given):
    raise RuntimeError("nsys ended with 1: no")
