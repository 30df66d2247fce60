"""What the report measures, and that measuring goes on where it was interrupted."""

import json
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pytest
import torch

import engine
from engine import provenance
from engine.metrics import Quality, Score, Scorer, classifier_features, reference_statistics
from engine.preconditioning import EDM
from engine.report import Budget, Measurements, Point, churn, take, trajectories
from engine.report import truncation_error as truncation
from engine.report.between import Between
from engine.samplers import edm, rk45
from tests.helpers import gaussian, wavy


def counted(calls, fail_at=None):
    def point(number):
        def measure():
            if number == fail_at:
                raise KeyboardInterrupt
            calls.append(number)
            return {"found": number * 10}

        return Point({"number": number}, measure)

    return [point(number) for number in range(4)]


def test_measuring_goes_on_where_it_was_interrupted(tmp_path):
    budget, calls = Budget(images=20), []
    with pytest.raises(KeyboardInterrupt):
        take(Measurements.of(tmp_path, "some", budget), counted(calls, fail_at=2), budget, "a command")
    assert [point["found"] for point in Measurements.load(tmp_path / "some.json").points] == [0, 10]
    assert take(Measurements.of(tmp_path, "some", budget), counted(calls), budget, "another command") == 0
    assert calls == [0, 1, 2, 3]
    found = Measurements.load(tmp_path / "some.json")
    assert [run["command"] for run in found.runs] == ["a command", "another command"]
    assert [point["run"] for point in found.points] == [0, 0, 1, 1]
    assert {"device", "threads", "torch", "commit", "date"} <= set(found.runs[0])
    assert take(found, counted(calls), budget, "a third", until=-math.inf) == 0
    assert take(Measurements.of(tmp_path / "new", "some", budget), counted([]), budget, "late", until=-math.inf) == 4


def test_provenance_is_of_the_checkout_or_of_the_version(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    assert provenance.provenance(cpu)["threads"] == torch.get_num_threads()
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.provenance(cpu)["commit"] == f"version {engine.__version__}"


def test_points_of_different_budgets_are_not_mixed(tmp_path):
    budget = Budget(images=20)
    take(Measurements.of(tmp_path, "some", budget), counted([]), budget, "a command")
    with pytest.raises(ValueError, match=r"images is 40; allowed: 20, as .*some.json has it"):
        Measurements.of(tmp_path, "some", Budget(images=40))
    (tmp_path / "some.json").write_text("{}")
    with pytest.raises(ValueError, match=r"some.json holds no measurements \(KeyError: 'section'\)"):
        Measurements.of(tmp_path, "some", budget)


def test_scores_are_those_of_the_measures_and_count_evaluations():
    prepared = engine.Engine(wavy(EDM(), shape=(1, 32, 32), label_dim=10), batch_size=16)
    scorer = Scorer(prepared)
    found = scorer(edm(steps=2), 20, first=5)
    images = prepared.sample(seeds=range(5, 25), class_labels=[i % 10 for i in range(20)], sampler=edm(steps=2))
    extractor = classifier_features()
    quality = Quality(extractor, reference_statistics("fashion-mnist-train", extractor), 20, keep=False)
    quality.add(range(20), images)
    measure = quality.measures(None)[0]
    assert found.distance == pytest.approx(measure.value, rel=1e-6)
    assert (found.low, found.high) == (pytest.approx(measure.low, rel=1e-6), pytest.approx(measure.high, rel=1e-6))
    assert found.nfe == 3
    assert Score.from_json(json.loads(json.dumps(found.as_json()))) == found
    loose = scorer(rk45(rtol=10.0, atol=10.0), 20)
    assert loose.nfe >= 9
    with pytest.raises(ValueError, match=r"model draws images of \[1, 4, 4\]; allowed: \[1, 32, 32\]"):
        Scorer(engine.Engine(gaussian()))


@dataclass(frozen=True)
class OnWavy(Budget):
    """Images of the classifier's size, quickly."""

    @property
    def denoiser(self):
        return wavy(EDM(), shape=(1, 32, 32), label_dim=10)


def test_points_of_scores_are_those_of_a_scorer():
    (point, *_) = churn.points(OnWavy(images=20, batch=7))
    assert point.settings == {"variant": churn.ALL, "S_churn": 0.0, "steps": 18}
    prepared = engine.Engine(OnWavy().denoiser, dtype=torch.bfloat16, batch_size=7)
    expected = Scorer(prepared)(edm(18), 20).as_json()
    assert point.measure() | {"seconds": 0} == expected | {"seconds": 0}


@dataclass(frozen=True)
class OnGaussian(Budget):
    """Data whose ODE has a closed form."""

    @property
    def denoiser(self):
        return gaussian(dtype=torch.float32)


def test_truncation_errors_are_those_of_one_heun_step(monkeypatch):
    monkeypatch.setattr(truncation, "STEPS", 5)
    found = truncation.truncation_error(OnGaussian(), 7.0)
    network = gaussian().model
    x = found["sigma"][0] * torch.randn(24, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = engine.samplers.Levels(5).sigmas(gaussian().preconditioning).tolist()
    for sigma, sigma_next, error in zip(sigmas, sigmas[1:-1], found["error"], strict=False):
        here = (x - network(x, torch.full([24], sigma))) / sigma
        ahead = x + (sigma_next - sigma) * here
        there = (ahead - network(ahead, torch.full([24], sigma_next))) / sigma_next
        stepped = x + (sigma_next - sigma) * (here + there) / 2
        x = network.solution(x, sigma, sigma_next)
        assert error == pytest.approx((stepped - x).square().mean().sqrt().item(), rel=0.03, abs=1e-6)


def test_between_ends_exactly_where_it_should():
    plan = engine.Plan(Between(3.0, 0.5, 4), gaussian().preconditioning)
    assert (plan.sigmas[0], plan.sigmas[-1], plan.nfe) == (3.0, 0.5, 8)


def test_trajectories_keep_the_quantiles_of_the_data(monkeypatch):
    """In one dimension the ODE moves quantiles: the distribution function at x(sigma) does not change."""
    monkeypatch.setattr(trajectories, "LEVELS", 40)
    found = trajectories.solve()
    for sigma, x in list(zip(found["sigma"], found["x"], strict=True))[::6]:
        x = torch.tensor(x, dtype=torch.float64)
        share = (torch.special.ndtr((x - 1) / sigma) + torch.special.ndtr((x + 1) / sigma)) / 2
        begun = torch.tensor(found["x"][0], dtype=torch.float64)
        latents = (torch.special.ndtr((begun - 1) / 25) + torch.special.ndtr((begun + 1) / 25)) / 2
        assert torch.allclose(share, latents, atol=2e-3)
    assert found["x"][0][-1] == pytest.approx(25 * NormalDist().inv_cdf(11.5 / 12), rel=1e-6)
    assert set(np.sign(found["x"][-1])) == {-1.0, 1.0}
    assert np.allclose(np.abs(found["x"][-1]), 1, atol=0.02)


def test_turning_is_that_of_a_quarter_circle_and_a_line():
    angle = np.linspace(0, math.pi / 2, 4000) ** 3  # uneven, as the levels are
    angle *= math.pi / 2 / angle[-1]
    circle = trajectories.bends(angle + 1, np.sin(angle), 1 - np.cos(angle), 1.0)
    assert circle.angle.sum() == pytest.approx(math.pi / 2, rel=0.03)
    assert np.allclose(circle.curvature, 1, rtol=0.02)
    line = np.linspace(1e-9, 1, 500) ** 7
    assert trajectories.bends(line, line, 3 * line, 3.0).angle.sum() < 1e-6
