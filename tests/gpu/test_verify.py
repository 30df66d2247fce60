"""Verification on a CUDA device."""

import pytest
import torch

import engine
from engine.verify.checks import Request, verify
from tests.helpers import small_unet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_self_check(dtype):
    engine.Engine(small_unet(), dtype=dtype, device="cuda").self_check()


def test_everything_holds():
    found = list(verify(Request.check("small", small_unet(), [torch.float32, torch.bfloat16], device="cuda")))
    assert not [f for f in found if f.passed is False]
    assert any(f.check == "samples" and f.passed for f in found)
