"""The report: measuring that goes on where it was, findings that follow from numbers, one page without other files."""

import html.parser
import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import engine
from engine.cli import cli
from engine.metrics import Quality, Score, Scorer, classifier_features, reference_statistics
from engine.metrics.intervals import BLOCKS
from engine.preconditioning import EDM
from engine.report import (
    SECTIONS,
    Budget,
    Measurements,
    Point,
    churn,
    quality_vs_nfe,
    sampler_table,
    take,
    trajectories,
)
from engine.report import truncation_error as truncation
from engine.report.between import Between
from engine.report.page import write_page
from engine.samplers import edm, rk45
from tests.helpers import gaussian, wavy

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "bench" / "results" / "report"
pytest.importorskip("matplotlib", reason="figures need matplotlib (extra figures)")


def score(distance, nfe=9.0, spread=0.0):
    """Blocks alike in all scores: paired, every difference is beyond doubt; or with a spread of its own, not."""
    own = random.Random(distance)
    without = [distance + 0.01 * block + own.gauss(0, spread) for block in range(BLOCKS)]
    return Score(distance, distance * 0.9, distance * 1.1, tuple(without), 0.8, nfe, 0.01).as_json()


def measured(section, points, images=20):
    run = {"device": "a test", "commit": "none", "command": "none"}
    return Measurements(section, Budget(images=images).record(), [run], [point | {"run": 0} for point in points])


def verdicts(section, points):
    return [finding.verdict for finding in section.draw(measured(section.name, points)).findings]


# --- measuring -------------------------------------------------------------------------------------------------------


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


# --- findings --------------------------------------------------------------------------------------------------------


def nfe_points(reached):
    """Every curve falls to the plateau at the NFE given for it; `None`: never."""
    curves = [*quality_vs_nfe.CURVES, quality_vs_nfe.BLACK_BOX]
    return [
        {"curve": curve}
        | score(1.0 if reached.get(curve, 59) is not None and nfe >= reached.get(curve, 59) else 5.0, nfe)
        for curve in curves
        for nfe in quality_vs_nfe.NFE
    ]


@pytest.mark.parametrize(
    ("reached", "verdict"),
    [
        ({quality_vs_nfe.OURS: 19}, "confirmed"),
        ({quality_vs_nfe.OURS: 59}, "not confirmed"),
        ({quality_vs_nfe.OURS: None}, "not confirmed"),
        ({quality_vs_nfe.OURS: 19, "DDIM, iDDPM levels": 13}, "not confirmed"),
        ({quality_vs_nfe.OURS: 19, quality_vs_nfe.BLACK_BOX: 19}, "not confirmed"),
        ({quality_vs_nfe.OURS: 19, "Euler, EDM levels": 13}, "different here"),
    ],
)
def test_the_plateau_is_judged_by_its_rule(reached, verdict):
    assert verdicts(quality_vs_nfe.SECTION, nfe_points(reached)) == [verdict]


def test_a_curve_that_leaves_the_plateau_has_not_reached_it():
    points = [score(distance, nfe) for distance, nfe in [(1.0, 5), (3.0, 9), (1.0, 13), (1.01, 19)]]
    assert quality_vs_nfe.plateau_nfe(points, 1.03) == 13
    assert quality_vs_nfe.plateau_nfe([score(2.0)], 1.03) is None


def rho_points(spread, quality):
    errors = [{"what": "error", "rho": rho, "sigma": [3.0, 2.0, 1.0, 0.5], "error": e} for rho, e in spread.items()]
    scores = [{"what": "quality", "rho": rho, "asked_nfe": 17} | score(d) for rho, d in quality.items()]
    return errors + scores


def test_truncation_and_rho_are_judged_by_their_rules():
    falling, even, uneven = [0.1, 0.2, 0.5, 3.0], [0.1, 0.11, 0.1, 0.1], [0.1, 0.1, 0.01, 0.01]
    good = {3: 2.0, 5: 1.5, 7: 1.4, 10: 1.6}
    judge = truncation.SECTION
    assert verdicts(judge, rho_points({1: falling, 3: even, 7: uneven}, good)) == ["confirmed", "confirmed"]
    assert verdicts(judge, rho_points({1: falling[::-1], 3: even, 7: uneven}, good | {7: 3.0, 5: 3.0, 10: 1.9999})) == [
        "not confirmed",
        "confirmed",
    ]
    assert verdicts(judge, rho_points({1: falling, 3: uneven, 7: even}, good | {3: 1.0})) == ["different here"] * 2
    assert verdicts(judge, rho_points({1: falling}, {3: 1.0})) == ["not measured"] * 2


@pytest.mark.parametrize(
    ("with_limits", "without", "expected"),
    [
        (0.8, 0.9, ["confirmed", "confirmed"]),
        (1.2, 1.1, ["different here", "different here"]),
        (1.0, 1.0, ["not confirmed", "not confirmed"]),
    ],
)
def test_churn_is_judged_by_its_rules(with_limits, without, expected):
    points = [{"variant": churn.ALL, "S_churn": 0.0} | score(1.0)]
    for S_churn in (1.0, 4.0):
        points.append({"variant": churn.ALL, "S_churn": S_churn} | score(with_limits))
        points.append({"variant": churn.NONE, "S_churn": S_churn} | score(without))
    assert verdicts(churn.SECTION, points) == expected


@pytest.mark.parametrize("distance", [0.99, 1.01])
def test_differences_within_the_interval_confirm_nothing(distance):
    """Nor do they make anything different."""
    limits = [
        {"variant": variant, "S_churn": S_churn} | score(1.0 if S_churn == 0 else distance, spread=0.1)
        for variant, S_churn in [(churn.ALL, 0.0), (churn.ALL, 1.0), (churn.ALL, 4.0)]
    ]
    limits += [{"variant": churn.NONE, "S_churn": S_churn} | score(1.0, spread=0.1) for S_churn in (1.0, 4.0)]
    assert verdicts(churn.SECTION, limits) == ["not confirmed", "not confirmed"]
    quality = [{"what": "quality", "rho": rho, "asked_nfe": 17} | score(1.0, spread=0.1) for rho in (3, 5, 10)]
    quality.append({"what": "quality", "rho": 7, "asked_nfe": 17} | score(0.99, spread=0.1))
    assert verdicts(truncation.SECTION, quality)[1] == "not confirmed"


def test_the_sampler_table_is_judged_by_its_rule():
    points = [
        {"solver": solver, "schedule": schedule} | score(2.0 if schedule == "edm" else 3.0)
        for solver in sampler_table.samplers()
        for schedule in sampler_table.SCHEDULES
    ]

    def best(solver, schedule, distance):
        chosen = {"solver": solver, "schedule": schedule}
        return [point | score(distance) if chosen.items() <= point.items() else point for point in points]

    assert verdicts(sampler_table.SECTION, best("unipc", "edm", 1.0)) == ["confirmed"]
    assert verdicts(sampler_table.SECTION, best("unipc", "vp", 1.0)) == ["different here"]
    assert verdicts(sampler_table.SECTION, best("ddim", "edm", 1.0)) == ["different here"]
    (table,) = sampler_table.SECTION.draw(measured("sampler-table", best("ddpm", "ve", 1.0))).tables
    assert table.rows[0][:2] == ("ddpm", "ve")
    assert table.rows[0][-1] == "1.7 min"  # 10,000 images at 0.01 s


# --- the page --------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Refuses what is not closed in order, and collects what refers to elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.images, self.headings = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        self._note(tag, dict(attributes))

    def handle_startendtag(self, tag, attributes):
        self._note(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _note(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "object")
        self.references += [attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])
        if tag == "h2":
            self.headings.append(attributes["id"])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """As `make report` makes it, of the committed measurements."""
    out = tmp_path_factory.mktemp("report")
    run = CliRunner().invoke(cli, ["report", "--out", str(out), "--measurements", str(COMMITTED)])
    assert run.exit_code == 0, run.output
    return out / "report.html"


def test_the_page_is_whole_and_refers_to_nothing_else(page):
    text = page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.headings == [section.name for section in SECTIONS]
    assert reader.images
    assert all(reference.startswith("data:image/png;base64,") for reference in reader.references)
    assert not re.search(r"url\(|@import", text)
    assert len(list(page.parent.glob("*.png"))) == len(reader.images)
    for part in text.split("<h2")[1:]:
        assert re.search("class='verdict'>(confirmed|not confirmed|different here|not measured)[ <]", part)


def test_every_figure_says_where_its_numbers_come_from(page):
    text = page.read_text()
    for path in COMMITTED.glob("*.json"):
        kept = Measurements.load(path)
        assert path.stem == kept.section
        assert kept.section in [section.name for section in SECTIONS]
        assert f"<code>{path.name}</code>, {len(kept.points)} points" in text
        for run in kept.runs:
            assert run["command"] in text
            assert "+changes" not in run["commit"]


def test_sections_that_are_not_measured_say_so(tmp_path):
    text = write_page(tmp_path, SECTIONS, {}).read_text()
    assert text.count("class='verdict'>not measured<") == len(SECTIONS)


def test_a_verdict_from_some_of_the_points_says_so(tmp_path):
    (section,) = (section for section in SECTIONS if section.name == "churn")
    points = [point.settings | score(1 - 0.1 * bool(point.settings["S_churn"])) for point in section.points(Budget())]
    some = write_page(tmp_path, [section], {"churn": measured("churn", points[:-1])}).read_text()
    assert some.count("class='verdict'>confirmed so far, from 20 of 21 points<") == 1
    every = write_page(tmp_path, [section], {"churn": measured("churn", points)}).read_text()
    assert every.count("class='verdict'>confirmed<") == 1


def test_a_browser_shows_every_figure(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: Debian's package chromium")
    asks = """<script>document.title = [...document.images].map(i => i.complete && i.naturalWidth > 500 &&
        i.getBoundingClientRect().right <= innerWidth).join()</script>"""
    asking = tmp_path / "asking.html"
    asking.write_text(page.read_text().replace("</body>", asks + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=5000", "--window-size=1100,900", "--dump-dom"]
    shown = subprocess.run([browser, *options, asking.as_uri()], capture_output=True, text=True, timeout=60)
    figures = page.read_text().count("<img ")
    assert f"<title>{','.join(['true'] * figures)}</title>" in shown.stdout


def test_an_unknown_section_or_folder_is_refused(tmp_path):
    run = CliRunner().invoke(cli, ["report", "--measure", "everything"])
    assert run.exit_code == 2
    assert "'everything' is not one of" in run.output
