"""What a call asks for: which seeds and numbers are taken, and which are refused, and what that takes."""

import time

import numpy as np
import pytest
import torch

import engine
from engine.preconditioning import EDM
from tests.helpers import wavy

DENOISER = wavy(EDM(), (2, 4, 6))


def draw(**arguments):
    return engine.sample(DENOISER, **({"sampler": engine.samplers.edm(2), "seeds": [1, 2]} | arguments))


@pytest.mark.parametrize("order", ["torch", "edm2"])
def test_seeds_that_a_published_order_takes_for_one_are_refused(order):
    message = (
        rf"^noise is '{order}' and seeds contains 5 and 4294967301, equal modulo 2\*\*32; "
        r"allowed: seeds distinct modulo 2\*\*32$"
    )
    with pytest.raises(ValueError, match=message):
        draw(seeds=[5, 6, 2**32 + 5], noise=order)
    assert torch.equal(draw(seeds=[5], noise=order), draw(seeds=[2**32 + 5], noise=order))
    assert not torch.equal(*draw(seeds=[5, 2**32 + 5]))


@pytest.mark.parametrize("order", ["philox", "torch", "edm2"])
def test_the_default_dtype_changes_no_image(order):
    options = {"noise": order, "sampler": engine.samplers.edm(2, S_churn=1)}
    before = draw(**options)
    torch.set_default_dtype(torch.float64)
    try:
        after = draw(**options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(after, before)


@pytest.mark.parametrize("seeds", [[True, False], [0, True], torch.tensor([True])])
def test_truth_values_are_no_seeds(seeds):
    with pytest.raises(ValueError, match=r"^seeds contains True; allowed: integers in \[0, 2\*\*64\)$"):
        draw(seeds=seeds)


def test_a_repeated_seed_is_named_at_once():
    started = time.process_time()
    with pytest.raises(ValueError, match="seeds contains 99999 more than once"):
        draw(seeds=[*range(100_000), 99_999])
    assert time.process_time() - started < 5  # 29 s where each was looked for among all before it


def test_numbers_of_numpy_are_taken():
    assert torch.equal(draw(offset_noise=np.float32(0.5)), draw(offset_noise=0.5))
    assert torch.equal(draw(offset_noise=np.int64(1)), draw(offset_noise=1))
    prepared = engine.Engine(wavy(EDM(), (2, 4, 6)), batch_size=2)
    (positions, images), *rest = prepared.stream(seeds=[1, 2, 3], batches=[np.int64(1)])
    assert (positions, len(images), rest) == ((2,), 1, [])


@pytest.mark.parametrize("value", [True, np.nan, np.inf, np.float32(-1), "0.1", torch.tensor(0.1)])
def test_other_offsets_are_refused(value):
    with pytest.raises(ValueError, match=r"^offset_noise is .*; allowed: a number from 0 and finite$"):
        draw(offset_noise=value)


@pytest.mark.parametrize("value", [True, np.int64(2), 0.5])
def test_other_batches_are_refused(value):
    prepared = engine.Engine(wavy(EDM(), (2, 4, 6)), batch_size=2)
    with pytest.raises(ValueError, match=r"^batches contains .*; allowed: 0 to 1$"):
        list(prepared.stream(seeds=[1, 2, 3], batches=[value]))
