"""Findings follow from the numbers by their rules: each can be confirmed, and each can fail."""

import random

import pytest

from engine.report import brightness, churn, quality_vs_nfe, rescale, sampler_table, zero_snr
from engine.report import truncation_error as truncation
from tests.report_points import measured, score, verdicts

pytest.importorskip("matplotlib", reason="figures need matplotlib (extra figures)")


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


def brightness_points(zero, usual, spread=0.0):
    """Classes whose brightness is drawn together by a slope; with a spread, each network's blocks have their own."""
    points = []
    for trained, slope in ((brightness.ZERO, zero), (brightness.USUAL, usual)):
        rows, own = [], random.Random(trained)
        for real in (-0.8, -0.6, -0.4):
            mean = -0.5 + slope * (real + 0.5)
            without = [mean + own.gauss(0, spread) for _ in range(10)]
            low, high = mean - 0.01, mean + 0.01
            about = {"class": str(real), "mean_brightness_data": real, "mean_brightness_samples": mean}
            rows.append(about | {"without": without, "interval": [low, high]})
        points.append({"what": "brightness", "trained": trained, "rows": rows})
    return points


@pytest.mark.parametrize(
    ("zero", "usual", "spread", "verdict"),
    [
        (1.0, 0.5, 0.0, "confirmed"),
        (1.3, 0.5, 0.0, "confirmed"),  # too much contrast, and yet nearer
        (1.0, 0.5, 0.002, "confirmed"),
        (0.5, 0.5, 0.0, "not confirmed"),
        (0.3, 0.5, 0.0, "not confirmed"),
        (1.6, 0.5, 0.0, "not confirmed"),
        (0.56, 0.5, 0.002, "not confirmed"),  # nearer, within the interval
        (1.0, 1.0, 0.0, "different here"),
        (1.0, 1.2, 0.0, "different here"),
        (1.0, 0.97, 0.01, "different here"),  # below, within the interval
    ],
)
def test_brightness_is_judged_by_its_rule(zero, usual, spread, verdict):
    points = brightness_points(zero, usual, spread)
    assert verdicts(zero_snr.SECTION, points)[2] == verdict
    drawn = zero_snr.SECTION.draw(measured("zero-snr", points))
    assert [name for name, _, _ in drawn.figures] == ["brightness"]
    assert verdicts(zero_snr.SECTION, points[:1])[2] == "not measured"


def guidance_points(none, plain, rescaled, data=0.5, spread=0.0):
    own = random.Random(0)
    points = []
    for weight, phi, value in ((1.0, 0.0, none), (7.5, 0.0, plain), (7.5, 0.7, rescaled)):
        without = [value + own.gauss(0, spread) for _ in range(10)]
        measured_as = {name: {"samples": value, "without": without, "data": data} for name in rescale.MEASURES}
        points.append({"what": "guidance", "weight": weight, "rescale": phi} | measured_as)
    return points


@pytest.mark.parametrize(
    ("none", "plain", "rescaled", "spread", "verdict"),
    [
        (0.5, 0.7, 0.52, 0.0, "confirmed"),
        (0.5, 0.7, 0.45, 0.0, "confirmed"),  # below the data, by a quarter of the excess
        (0.5, 0.7, 0.52, 0.002, "confirmed"),
        (0.5, 0.7, 0.65, 0.0, "different here"),
        (0.5, 0.7, 0.35, 0.0, "different here"),
        (0.5, 0.7, 0.598, 0.002, "different here"),  # less than half, within the interval
        (0.5, 0.7, 0.7, 0.0, "not confirmed"),
        (0.5, 0.7, 0.8, 0.0, "not confirmed"),
        (0.5, 0.7, 0.2, 0.0, "not confirmed"),  # farther below than above
        (0.5, 0.7, 0.69, 0.01, "not confirmed"),  # nearer, within the interval
        (0.4, 0.48, 0.5, 0.0, "not confirmed"),  # not above the data
        (0.5, 0.5, 0.5, 0.0, "not confirmed"),  # no excess to keep a share of
        (0.7, 0.7, 0.5, 0.0, "not confirmed"),  # without guidance no less
        (0.49, 0.51, 0.5, 0.02, "not confirmed"),  # above, within the interval
    ],
)
def test_guidance_rescale_is_judged_by_its_rule(none, plain, rescaled, spread, verdict):
    points = guidance_points(none, plain, rescaled, spread=spread)
    assert verdicts(zero_snr.SECTION, points)[3] == verdict
    drawn = zero_snr.SECTION.draw(measured("zero-snr", points))
    assert [name for name, _, _ in drawn.figures] == ["guidance-rescale"]
    assert drawn.tables[-1].rows[-1][0] == "data"
    assert verdicts(zero_snr.SECTION, points[1:])[3] == "not measured"
