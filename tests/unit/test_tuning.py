"""The search for churn, on scores that are known."""

import json
import random

import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.metrics import Score
from engine.metrics.intervals import BLOCKS
from engine.samplers import Churn
from engine.tuning import candidates, tune_churn

LEAST = 5720  # images that 18 candidates need


def score_of(distance, spread=0.0, seed=0):
    """A score whose blocks differ, all samplers' in the same way but for ``spread``."""
    noise = random.Random(seed)
    without = tuple(distance + 0.05 * block + noise.gauss(0, spread) for block in range(BLOCKS))
    return Score(distance, distance, distance, without, 1.0, 35.0, 0.1)


def by_distance(distance, calls=None, spread=0.0):
    def score(sampler, images, first):
        if calls is not None:
            calls.append((sampler.churn, first, images))
        return score_of(distance(sampler.churn), spread, f"{sampler.churn}")

    return score


def test_the_best_candidate_is_found_and_judged_on_fresh_seeds():
    calls = []
    target = Churn(2.237, 0.05, 50.0, 1.007)
    assert target in candidates(18)

    def distance(churn):
        return 1 + abs(churn.S_churn - target.S_churn) + (churn.S_tmax != 50) + abs(churn.S_noise - 1.007) * 10

    tuned = tune_churn(by_distance(distance, calls), 18, 20_000)
    assert tuned.best == target
    assert tuned.verdict == "stochasticity helps"
    assert tuned.by == pytest.approx(distance(target) - distance(Churn()))
    assert sum(images for _, _, images in calls) <= 20_000
    *search, last, still = calls
    assert {first for _, first, _ in search} == {0}
    assert last[1] == still[1] == max(images for _, _, images in search)  # seeds from there on: none was searched with
    assert still[0] == Churn()
    assert all(found.scores[0][1].distance <= found.scores[-1][1].distance for found in tuned.rounds)


def test_it_says_when_churn_hurts_and_when_nothing_can_be_seen():
    assert tune_churn(by_distance(lambda churn: churn.S_churn), 18, LEAST).verdict == "stochasticity hurts"
    noisy = by_distance(lambda churn: 1 + 0.01 * (churn.S_churn == 0), spread=0.5)
    assert tune_churn(noisy, 18, LEAST).verdict == "stochasticity does not help beyond noise"


def test_a_budget_too_small_for_intervals_is_refused():
    with pytest.raises(ValueError, match=rf"budget is {LEAST - 1}; allowed: from {LEAST} images"):
        tune_churn(by_distance(lambda churn: 1.0), 18, LEAST - 1)


def test_differences_are_paired():
    """What the blocks of both share cancels; what only one has does not."""
    by, half = score_of(1.5).above(score_of(1.0))
    assert (by, half) == (0.5, pytest.approx(0, abs=1e-12))
    assert score_of(1.5, spread=0.1).above(score_of(1.0))[1] > 0.1


def test_the_command_says_what_was_found_and_keeps_it(tmp_path, monkeypatch):
    scorer = by_distance(lambda churn: 2 - 0.1 * churn.S_churn)
    monkeypatch.setattr("engine.cli.tune.Scorer", lambda engine: scorer)
    out = tmp_path / "found.json"
    run = CliRunner().invoke(cli, ["tune", "--budget", str(LEAST), "--steps", "18", "--json", str(out)])
    assert run.exit_code == 0, run.output
    assert "stochasticity helps: -0.746 +- 0.000 (95%, paired over seeds)" in run.output
    assert run.output.count("--S-churn 7.456") >= 6
    found = json.loads(out.read_text())
    assert found["best"]["S_churn"] == 7.456
    assert found["settings"]["budget"] == LEAST
    assert {"device", "threads", "commit", "date"} <= set(found["provenance"])
    run = CliRunner().invoke(cli, ["tune", "--budget", "100"])
    assert str(run.exception) == f"budget is 100; allowed: from {LEAST} images"
