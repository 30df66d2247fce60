"""Coverage-guided fuzzing of `engine.load`: any file ends in a denoiser or in one ValueError of one line.

    pip install "edm-engine[fuzz]"
    python -m tests.fuzz.fuzz_checkpoints -max_total_time=600 -timeout=20 -rss_limit_mb=3000 corpus tests/fuzz/seeds

The options are libFuzzer's; new inputs of interest are added to the first folder.
"""

import gc
import os
import random
import sys
import tempfile
import types
from pathlib import Path

import atheris

import engine
from tests.fuzz.mutate import splice

_FOLLOWED = ("engine.checkpoints", "engine.denoiser", "engine.tensor_file", "pickletools", "zipfile")
SEEDS = Path(__file__).parent / "seeds"
SAYS = {"img_resolution": 8, "class_name": "VEPrecond", "resample_filter": [1, 1], "num_head_channels": 64}
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "ctypes.dlopen",
)


def instrument() -> None:
    """Follow coverage in the readers. Not by atheris's import hook: the loader of an editable install goes past it."""
    for function in [each for each in gc.get_objects() if isinstance(each, types.FunctionType)]:
        if (function.__module__ or "").startswith(_FOLLOWED):
            atheris.instrument_func(function)


def refuse(event: str, _: tuple) -> None:
    if event in _FORBIDDEN:
        os.abort()


def one_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for config in (None, SAYS):
        message = "loaded"
        try:
            engine.load(path, config=config)
        except ValueError as error:
            message = str(error)
        assert len(message.splitlines()) == 1, message


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Every other time opcodes, otherwise what libFuzzer does."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        return atheris.Mutate(data, largest)
    other = draw.choice(sorted(SEEDS.iterdir())).read_bytes()
    return splice(data, other, draw)[:largest]


def main() -> None:
    path = Path(tempfile.mkdtemp()) / "checkpoint"
    instrument()
    sys.addaudithook(refuse)
    atheris.Setup(sys.argv, lambda data: one_file(path, data), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
