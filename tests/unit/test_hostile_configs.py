"""Hostile configs in files of our own, and what hostile checkpoints take of a whole process's memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save as safetensors

import engine
from tests.fuzz.make_seeds import CONFIG, SEEDS
from tests.unit.test_hostile_checkpoints import DEVICES, doubled, refused, warm  # noqa: F401 (a fixture)


def native(config: object, built: dict = CONFIG) -> bytes:
    """A file of our own with the tensors of one config and another written into it."""
    tensors = engine.Denoiser.from_config(built).state_dict()
    return safetensors(tensors, {"format": "edm-engine 1", "config": json.dumps(config)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"num_blocks": 10**12}, "num_blocks and channel_mult in its config do not fit"),
        (CONFIG | {"resample_filter": doubled(3)}, "resample_filter in its config is not a number"),
        ([], "its metadata holds no config"),
        ([CONFIG], "its metadata holds no config"),
        (3, "its metadata holds no config"),
        (None, "its metadata holds no config"),
        ({}, "class_name is None"),
        (CONFIG | {"model_channels": "a"}, "model_channels is 'a'; allowed: an integer"),
        (CONFIG | {"channel_mult": 2}, "channel_mult is 2; allowed: a list of integers"),
        (CONFIG | {"channel_mult": ["a"]}, "channel_mult is ['a']; allowed: a list of integers"),
        (CONFIG | {"dropout": "a"}, "dropout is 'a'; allowed: a number"),
        (CONFIG | {"label_dim": -1}, "label_dim in its config is negative"),
        (CONFIG | {"model_channels": 2}, "a layer has 2 channels; allowed: numbers that make up to 32 equal groups"),
        (CONFIG | {"model_channels": 14}, "a layer has 14 channels; allowed: numbers that make up to 32 equal groups"),
        (CONFIG | {"class_name": "DiscretePrecond", "T": 10**7}, "T is 10000000; allowed: an integer from 1 to"),
        (CONFIG | {"class_name": "DiscretePrecond", "T": 1e9}, "T is 1000000000.0; allowed: an integer"),
        (
            CONFIG | {"class_name": "iDDPMPrecond", "learn_sigma": False, "M": 10**9},
            "M is 1000000000; allowed: an integer from 1 to",
        ),
    ],
)
def test_hostile_metadata(tmp_path, config, message):
    assert message in refused(tmp_path / "net.safetensors", native(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_resolution": 7, "channel_mult": [1, 1]}, "its network cannot be evaluated for images of [1, 7, 7]"),
        ({"model_channels": 5}, "its network cannot be evaluated"),  # sinusoids come in pairs
    ],
)
def test_networks_that_cannot_be_evaluated_are_not_loaded(tmp_path, changes, message):
    """They can be built, and their tensors fit."""
    assert message in refused(tmp_path / "net.safetensors", native(CONFIG | changes, CONFIG | changes))


_GROWTH = """
import sys, engine
def most():  # not ru_maxrss, which counts the process that started this one
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
engine.load(sys.argv[1])
before = most()
try:
    engine.load(sys.argv[2])
except ValueError:
    print(most() - before)
"""


@pytest.mark.parametrize(
    "data",
    [DEVICES, native(CONFIG | {"class_name": "DiscretePrecond", "T": 10**7})],
    ids=["copies of a tuple", "a table of noise levels"],
)
def test_memory_of_the_whole_process(tmp_path, data):
    """Also what tracemalloc does not see: memory of torch, of NumPy and of zlib."""
    (tmp_path / "x").write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-c", _GROWTH, SEEDS / "native.safetensors", tmp_path / "x"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert int(child.stdout) < 6e7
