"""`python -m pytest -p tests.pretend.plugin tests/gpu`: the tests of a CUDA device on the pretended one."""

import gc
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import pytest

from tests.pretend import launches, torch_cuda
from tests.pretend.clocks import Device

torch_cuda.install()
launches.install()
gc.freeze()  # what is imported stays; every capture collects garbage, and looked through it all

_CANNOT = {
    "test_compute_sanitizer": "there is nothing to sanitize",
    "test_large_jobs": "other processes have no pretended device",
    "test_a_plain_torch_module[True]": "torch.compile would compile for a device that is not there",
    "test_what_cannot_be_captured_is_named[lift_fresh]": "torch copies otherwise where a mode looks on",
    "test_a_row_that_cannot_be_carried_out_marks_its_sample[cuda]": "the C++ backend raises instead",
}


def pytest_collection_modifyitems(items):
    for item in items:
        for name, why in _CANNOT.items():
            if name in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=f"on a pretended device: {why}"))


@pytest.fixture(autouse=True)
def _nothing_is_let_go_too_early():
    yield
    found, Device.it.errors = Device.it.errors, []
    assert not found


@pytest.fixture(autouse=True)
def _networks_without_triton(request, monkeypatch):
    """Torch's operations, a hundred times as fast as Triton's interpreter, but where these are what is tested."""
    if request.module.__name__.endswith("test_networks"):
        return
    from engine.networks import triton_ops

    monkeypatch.setattr(triton_ops, "available", lambda device: False)
