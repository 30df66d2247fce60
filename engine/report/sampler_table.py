"""Samplers by schedules at one number of evaluations: score, NFE, time."""

from collections.abc import Callable, Iterator

from ..metrics import Score
from ..samplers import REGISTRY, Sampler, ablation
from ..samplers.levels import Discretization
from .measurements import Json, Measurements
from .plotting import distance_axis, new_figure, scores_against
from .section import Budget, Drawn, Finding, Point, Section, Table, Verdict, not_measured, score_point

NFE = 18
TIMED = 10_000
SCHEDULES: tuple[Discretization, ...] = ("edm", "vp", "ve", "iddpm")
_ONE_A_STEP = ("ddim", "dpmpp_2m", "unipc", "lms", "dpmpp_2m_sde", "ddpm", "euler_maruyama")
_TWO_A_STEP = ("dpmpp_2s", "predictor_corrector")


def samplers() -> dict[str, Callable[[Discretization], Sampler]]:
    """Each with as many steps as `NFE` evaluations allow."""

    def listed(name: str, steps: int) -> Callable[[Discretization], Sampler]:
        return lambda schedule: REGISTRY[name].make(steps=steps, discretization=schedule)

    made: dict[str, Callable[[Discretization], Sampler]] = {
        "edm (Heun)": lambda schedule: ablation(NFE // 2, discretization=schedule)
    }
    made |= {name: listed(name, NFE) for name in _ONE_A_STEP}
    return made | {name: listed(name, NFE // 2) for name in _TWO_A_STEP}


def points(budget: Budget) -> Iterator[Point]:
    """Schedule by schedule."""
    for schedule in SCHEDULES:
        for name, make in samplers().items():
            yield score_point(budget, make(schedule), solver=name, schedule=schedule)


def draw(measurements: Measurements) -> Drawn:
    figure = new_figure(10, 5.5)
    axes = figure.subplots()
    names = list(samplers())
    for index, schedule in enumerate(SCHEDULES):
        found = [
            point | {"place": names.index(point["solver"]) + (index - 1.5) * 0.15}
            for point in measurements.where(schedule=schedule)
        ]
        if found:
            scores_against(axes, found, "place", f"{schedule} levels", index, joined=False)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set(
        yscale="log", xlabel="sampler", title=f"At most {NFE} evaluations an image, {measurements.budget['model']}"
    )
    distance_axis(axes, measurements.budget["images"])
    axes.legend(fontsize=8)
    shown = "Frechet distance of every sampler on every schedule's noise levels; lower is better"
    return Drawn((_finding(measurements),), (("sampler-table", shown, figure),), (_table(measurements),))


def _table(measurements: Measurements) -> Table:
    """The best first."""
    ordered = sorted(measurements.points, key=lambda point: point["distance"])
    head = ("sampler", "schedule", "Frechet distance", "95% interval", "recognised", "NFE", f"{TIMED:,} images take")
    caption = (
        f"{measurements.budget['images']:,} images each; the time is that of these images times as many as {TIMED:,} "
        "has, on the machine and threads named below"
    )
    return Table(caption, head, tuple(_row(point) for point in ordered))


def _row(point: Json) -> tuple[str, ...]:
    score = Score.from_json(point)
    interval, minutes = f"{score.low:.3f} to {score.high:.3f}", TIMED * score.seconds / 60
    figures = (f"{score.distance:.3f}", interval, f"{100 * score.recognised:.1f}%", f"{score.nfe:.4g}")
    return (point["solver"], point["schedule"], *figures, f"{minutes:.1f} min")


def _finding(measurements: Measurements) -> Finding:
    claim = "at equal evaluations, deterministic solvers of higher order on the EDM levels draw the best images"
    rule = (
        "Confirmed: the lowest distance is that of such a solver (Heun, DPM-Solver++ 2M or 2S, UniPC, LMS) on the EDM "
        "levels, and below DDIM's there by more than the paired 95% interval; not confirmed: below by less; different "
        "here: the lowest is another's"
    )
    missing = len(samplers()) * len(SCHEDULES) - len(measurements.points)
    scores = {(point["solver"], point["schedule"]): Score.from_json(point) for point in measurements.points}
    if ("ddim", "edm") not in scores or len({schedule for _, schedule in scores}) < 2:
        return not_measured(claim, rule, f"{missing} of {len(samplers()) * len(SCHEDULES)} points are missing")
    best = min(scores, key=lambda name: scores[name].distance)
    by, half = scores[best].above(scores["ddim", "edm"])
    expected = best[0] in ("edm (Heun)", "dpmpp_2m", "dpmpp_2s", "unipc", "lms") and best[1] == "edm"
    verdict: Verdict = "different here" if not expected else "confirmed" if by < -half else "not confirmed"
    numbers = (
        f"the lowest is {best[0]} on {best[1]} levels, {scores[best].distance:.3f}, {by:+.3f} +- {half:.3f} from DDIM "
        "on EDM levels" + (f"; {missing} of the points are still missing" if missing else "")
    )
    return Finding(claim, rule, verdict, numbers)


SECTION = Section(
    "sampler-table",
    "Samplers by schedules",
    "the comparisons of samplers at equal evaluations",
    points,
    draw,
    ("Times are of the runs below, on as many threads as they name, beside whatever else the machine did meanwhile.",),
)
