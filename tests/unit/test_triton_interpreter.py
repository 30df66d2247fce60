"""The Triton kernels on CPU tensors, by Triton's interpreter, to the bit against the reference.

Triton decides when it is imported whether it interprets, so the tests run in a process of their own: all of
test_advance.py for the Triton backend, interpreted.py and interpreted_networks.py. In this process the backend says
why it cannot run.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import backends
from engine.backends import triton as backend
from engine.verify.cases import Case

HERE = Path(__file__).parent
CPU, F64 = torch.device("cpu"), torch.float64
triton = pytest.importorskip("triton", reason="Triton is not installed")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton's interpreter is on already", allow_module_level=True)
_NUMPY_TOO_NEW = triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"


@pytest.mark.skipif(_NUMPY_TOO_NEW, reason="the interpreter of Triton 3.6 needs NumPy below 2.4")
@pytest.mark.parametrize(
    "tests", [["test_advance.py", "-k", "triton"], ["interpreted.py"], ["interpreted_networks.py"]], ids=lambda t: t[0]
)
def test_under_the_interpreter(tests):
    # NumPy, which the interpreter computes with, warns of what IEEE arithmetic defines (overflow, infinity, NaN), and
    # of how Triton 3.6 makes numbers of arrays.
    quiet = [f"-Wignore::{name}Warning" for name in ("Runtime", "User", "Deprecation")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quiet, HERE / tests[0], *tests[1:]]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


def test_the_backend_says_why_it_cannot_run():
    (reason,) = backend.not_supported_reasons(CPU, F64)
    assert "no CUDA device" in reason
    assert "interpreter is not on" in reason
    with pytest.raises(ValueError, match=r"cannot run here.*triton: the device is cpu.*reference: can"):
        backends.select("triton", CPU, F64, torch.float32)
    assert backends.select("auto", CPU, F64, torch.float32).name != "triton"
    assert any("state is torch.float16" in r for r in backend.not_supported_reasons(CPU, torch.float16))
    assert "the network is torch.float64" in backend.not_supported_reasons(CPU, F64, F64)[-1]
    assert "not a CUDA device" in backend.not_supported_reasons(torch.device("meta"), F64)[0]
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device" in backend.not_supported_reasons(torch.device("cuda"), F64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net_in": lambda t: t.double()}, r"^net_in is torch.float64 .*a float64 network"),
        ({"net_in": lambda t: t[:, :2]}, r"^net_in .*allowed: the shape of x"),
        ({"net_in": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3)}, r"^net_in has strides"),
        ({"x": lambda t: t.half()}, r"^x is torch.float16"),
        ({"x": lambda t: t.transpose(2, 3)}, r"^x .*allowed: contiguous"),
        ({"slots": lambda t: t.float()}, r"^slots .*allowed: torch.float64"),
        ({"table": lambda t: t[:, 1:]}, r"^table .*allowed: float64 \[rows, "),
        ({"base_row": lambda t: t.int()}, r"^base_row .*allowed: int64"),
        ({"bad_row": lambda t: t.to("meta")}, r"^bad_row .*on the device of x"),
        ({"c_noise": lambda t: t.double()}, r"^c_noise .*allowed: float32"),
    ],
)
def test_buffers_it_cannot_address_are_refused(change, message):
    F, state = Case(shape=(3, 8, 8)).build()
    for name, edit in change.items():
        setattr(state, name, edit(getattr(state, name)))
    with pytest.raises(ValueError, match=message):
        backend.advance(F, state, 2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda F: F.double(), r"^F is torch.float64 .*a float64 network"),
        (lambda F: F[:, :2], r"^F .*allowed: the shape of x"),
        (lambda F: F[:2], r"^F .*allowed: the shape of x"),
    ],
)
def test_network_outputs_it_cannot_address_are_refused(edit, message):
    F, state = Case(shape=(3, 8, 1)).build()
    with pytest.raises(ValueError, match=message):
        backend.advance(edit(F.contiguous()), state, 2)


def test_offsets_inside_a_sample_have_32_bits():
    x = torch.empty(2, 3, 64, 1, device="meta")
    assert backend._strides(x, x) == (192, 64, 1, True)
    assert backend._strides(x.to(memory_format=torch.channels_last), x) == (192, 1, 3, False)
    assert backend._strides(torch.empty_strided(x.shape, (2**40, 64, 1, 1), device="meta"), x) == (2**40, 64, 1, True)
    with pytest.raises(ValueError, match=r"^a sample of strides .* spans 2\^31 elements"):
        backend._strides(torch.empty_strided(x.shape, (0, 2**30, 1, 1), device="meta"), x)
