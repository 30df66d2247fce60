"""Scores of samplers: the evaluations that they state are those of the samples, however these are drawn."""

import pytest

import engine
from engine.metrics import Scorer


@pytest.fixture(scope="module")
def denoiser():
    return engine.load("fashion-mnist")


@pytest.mark.parametrize("graph", ["off", "step", "loop"])
def test_evaluations_of_a_table(replay, denoiser, graph):
    """Neither what warms up a capture counts, nor padding, nor do replays go uncounted."""
    prepared = engine.Engine(denoiser, batch_size=8, buckets=[8], graph=graph)
    found = Scorer(prepared)(engine.samplers.edm(2), 20)
    assert found.nfe == 3
    assert (replay.replayed > 0) == (graph != "off")


def test_evaluations_of_the_adaptive_solver(denoiser):
    """The same in batches that are padded as in those that are not, and more for a smaller tolerance."""
    loose, strict = (engine.samplers.rk45(tolerance, tolerance) for tolerance in (0.5, 0.1))
    exact, padded = (engine.Engine(denoiser, batch_size=8, buckets=buckets) for buckets in ([], [8]))
    calls = []
    exact.denoiser.model.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    found = Scorer(exact)(loose, 20)
    assert found.nfe == sum(calls) / 20
    assert Scorer(padded)(loose, 20).nfe == found.nfe
    assert Scorer(exact)(strict, 20).nfe > found.nfe
