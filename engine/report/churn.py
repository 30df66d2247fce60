"""Quality against stochasticity, and what its limits are worth: the EDM paper's Figure 4."""

import math
from collections.abc import Iterator

from ..metrics import Score
from ..samplers import Churn, EDMSampler, Levels
from .measurements import Measurements
from .plotting import distance_axis, new_figure, scores_against
from .section import Budget, Drawn, Finding, Point, Section, Verdict, not_measured, score_point

STEPS = 18
# Beyond steps (sqrt(2) - 1), here 7.46, S_churn changes nothing more: gamma has a ceiling.
S_CHURN = (0.0, 4.0, 7.5, 2.0, 1.0, 6.0)
ALL, NONE = "S_tmin, S_tmax = 0.05, 50; S_noise = 1.003", "S_tmin, S_tmax = 0, inf; S_noise = 1"
LIMITS, NOISE = {"S_tmin": 0.05, "S_tmax": 50.0}, {"S_noise": 1.003}
VARIANTS: dict[str, dict[str, float]] = {
    ALL: LIMITS | NOISE,
    NONE: {},
    "S_tmin, S_tmax = 0.05, 50; S_noise = 1": LIMITS,
    "S_tmin, S_tmax = 0, inf; S_noise = 1.003": NOISE,
}


def points(budget: Budget) -> Iterator[Point]:
    for variants in ([ALL], [NONE], list(VARIANTS)[2:]):
        for S_churn in S_CHURN:
            for variant in variants:
                if S_churn > 0 or variant == ALL:  # without churn all are the same sampler
                    sampler = EDMSampler(Levels(STEPS), Churn(S_churn, **VARIANTS[variant]))
                    yield score_point(budget, sampler, variant=variant, S_churn=S_churn, steps=STEPS)


def draw(measurements: Measurements) -> Drawn:
    figure = new_figure(8.5, 5.5)
    axes = figure.subplots()
    still = measurements.where(S_churn=0.0)
    for index, variant in enumerate(VARIANTS):
        found = [point for point in measurements.where(variant=variant) if point["S_churn"] > 0]
        if found:
            scores_against(axes, [*still, *found], "S_churn", variant, index)
    cap = STEPS * (math.sqrt(2) - 1)
    axes.axvline(cap, color="black", linestyle=":", linewidth=0.8, label=f"gamma's ceiling, S_churn = {cap:.2f}")
    axes.set(xlabel="S_churn (0: deterministic)")
    axes.set_title(f"Quality against S_churn, Heun, {STEPS} steps, NFE {2 * STEPS - 1}, {measurements.budget['model']}")
    distance_axis(axes, measurements.budget["images"])
    axes.legend(fontsize=8)
    shown = "Frechet distance against S_churn with and without the limits, 95% intervals over seeds; lower is better"
    return Drawn((_helps(measurements), _limits(measurements)), (("churn", shown, figure),))


def _scores(measurements: Measurements, variant: str) -> dict[float, Score]:
    return {point["S_churn"]: Score.from_json(point) for point in measurements.where(variant=variant)}


def _helps(measurements: Measurements) -> Finding:
    claim = "stochasticity helps: with the right limits, some S_churn above 0 gives better images than none"
    rule = (
        "with the limits and S_noise. Confirmed: the best S_churn above 0 is below S_churn = 0 by more than the paired "
        "95% interval; different here: it is above by more; not confirmed: neither. The best of several values is "
        "picked on the same seeds, which favours it a little; `edm-engine tune` judges on fresh ones"
    )
    scores = _scores(measurements, ALL)
    if len(scores) < 3 or 0.0 not in scores:
        return not_measured(claim, rule, f"{len(scores)} of {len(S_CHURN)} values of S_churn are measured")
    best = min((S_churn for S_churn in scores if S_churn > 0), key=lambda S_churn: scores[S_churn].distance)
    by, half = scores[best].above(scores[0.0])
    verdict: Verdict = "confirmed" if by < -half else "different here" if by > half else "not confirmed"
    numbers = (
        f"S_churn = {best:g}: {scores[best].distance:.3f}; none: {scores[0.0].distance:.3f}; the difference over the "
        f"same seeds is {by:+.3f} +- {half:.3f}"
    )
    return Finding(claim, rule, verdict, numbers)


def _limits(measurements: Measurements) -> Finding:
    claim = "the limits S_tmin and S_tmax and an S_noise above 1 are what lets stochasticity help"
    rule = (
        "at the S_churn, of those measured with both and with neither, where both are best. Confirmed: both are below "
        "neither by more than the paired 95% interval; different here: above by more; not confirmed: no difference"
    )
    both, neither = _scores(measurements, ALL), _scores(measurements, NONE)
    shared = [S_churn for S_churn in both if S_churn in neither]
    if len(shared) < 2:
        return not_measured(claim, rule, f"{len(shared)} values of S_churn are measured with and without the limits")
    at = min(shared, key=lambda S_churn: both[S_churn].distance)
    by, half = both[at].above(neither[at])
    verdict: Verdict = "confirmed" if by < -half else "different here" if by > half else "not confirmed"
    parts = [
        f"{variant}: {scores[at].distance:.3f}"
        for variant in VARIANTS
        if at in (scores := _scores(measurements, variant))
    ]
    return Finding(claim, rule, verdict, f"at S_churn = {at:g} {by:+.3f} +- {half:.3f}; {'; '.join(parts)}")


SECTION = Section(
    "churn",
    "Quality against stochasticity",
    "Karras et al. 2022, Figure 4",
    points,
    draw,
    (
        f"At {STEPS} steps gamma = min(S_churn / {STEPS}, sqrt(2) - 1) reaches its ceiling early; the paper's larger "
        "values of S_churn are for hundreds of steps.",
    ),
)
