"""A selection of the tests of a CUDA device on a pretended one (tests/pretend), in a process of its own that has
torch.cuda replaced: the engine's streams, events, graphs and copies. All of them in the slow tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# A churned plan with guidance, each backend, and whatever is not the same again for another plan, dtype or network.
_QUICK = [
    "backends_and and dtype0-state_dtype0 and loop",
    "replay and churned and rescaled",
    "shipped_network and dtype0",
    "not (replay or backends_and or shipped or growth or threads and auto)",
]

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real CUDA device"),
]
pytest.importorskip("triton", reason="Triton is not installed")


def run(*tests: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.pretend.plugin", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_the_device_itself_and_the_benchmarks():
    assert " skipped" not in run("tests/pretend/cases.py")


@pytest.mark.parametrize("which", _QUICK)
def test_graphs(which):
    assert " passed" in run("tests/gpu/test_graphs.py", "-k", which)


def test_noise_the_fused_step_and_what_cudnn_is_asked_by_name():
    which = "TestTritonParts or cuda and (unaligned or normal or draw_for_each or capture or current_stream)"
    files = [f"tests/gpu/test_{name}.py" for name in ("noise", "advance", "networks")]
    assert " passed" in run(*files, "-k", f"{which} or resampling_alone")


@pytest.mark.slow
def test_everything():
    assert " passed" in run("tests/gpu", "-m", "slow or not slow")
