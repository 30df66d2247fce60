"""Coverage-guided fuzzing of `engine.load`: any file ends in a denoiser or in one ValueError of one line.

    pip install "edm-engine[fuzz]"
    python -m tests.fuzz.fuzz_checkpoints -max_total_time=600 -timeout=20 -rss_limit_mb=3000 corpus tests/fuzz/seeds

The options are libFuzzer's; new inputs of interest are added to the first folder.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["engine.checkpoints", "engine.tensor_file", "pickletools", "zipfile"]):
    import engine

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


def main() -> None:
    path = Path(tempfile.mkdtemp()) / "checkpoint"
    sys.addaudithook(refuse)
    atheris.Setup(sys.argv, lambda data: one_file(path, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
