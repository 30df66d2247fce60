"""Quality against the number of network evaluations: the EDM paper's Figure 2, on one network."""

from collections.abc import Callable, Iterator, Sequence

from ..samplers import AdaptiveSampler, Sampler, ablation, ddim, edm, rk45
from .measurements import Json, Measurements
from .plotting import distance_axis, new_figure, nfe_axis, scores_against
from .section import Budget, Drawn, Finding, Point, Section, Verdict, not_measured, score_point

PLATEAU = 1.03
NFE = (5, 9, 13, 19, 27, 35, 59, 99)
TOLERANCES = (3e-1, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
OURS, BLACK_BOX = "Heun, EDM levels (the paper's)", "RK45, tolerance varied"
# By evaluations; Heun's are odd. The first three are the samplers the paper starts from, and then its changes to them.
CURVES: dict[str, Callable[[int], Sampler]] = {
    "Euler, VP levels, sigma(t), s(t)": lambda nfe: ablation(nfe, "euler", "vp", "vp", "vp"),
    "Euler, VE levels, sigma(t)": lambda nfe: ablation(nfe, "euler", "ve", "ve"),
    "DDIM, iDDPM levels": lambda nfe: ddim(steps=nfe, discretization="iddpm"),
    "Heun, EDM levels, VP sigma(t), s(t)": lambda nfe: ablation(_heun(nfe), "heun", "edm", "vp", "vp"),
    "Heun, EDM levels, VE sigma(t)": lambda nfe: ablation(_heun(nfe), "heun", "edm", "ve"),
    "Euler, EDM levels": lambda nfe: edm(nfe, solver="euler"),
    OURS: lambda nfe: edm(_heun(nfe)),
}


def _heun(nfe: int) -> int:
    return (nfe + 1) // 2


def points(budget: Budget) -> Iterator[Point]:
    """Every curve at one number of evaluations, then at the next."""

    def at(curve: str, sampler: Sampler | AdaptiveSampler, **settings: float) -> Point:
        return score_point(budget, sampler, curve=curve, **settings)

    tolerances = list(TOLERANCES)
    for nfe in NFE:
        for curve, make in CURVES.items():
            yield at(curve, make(nfe), asked_nfe=nfe)
        if nfe >= 19 and tolerances:
            tolerance = tolerances.pop(0)
            yield at(BLACK_BOX, rk45(tolerance, tolerance), tolerance=tolerance)
    for tolerance in tolerances:
        yield at(BLACK_BOX, rk45(tolerance, tolerance), tolerance=tolerance)


def draw(measurements: Measurements) -> Drawn:
    figure = new_figure(11, 5.5)
    axes = figure.subplots()
    for index, curve in enumerate([*CURVES, BLACK_BOX]):
        found = measurements.where(curve=curve)
        if found:
            scores_against(axes, found, "nfe", curve, index)
    best = _lowest(measurements.points)
    if best is not None:
        axes.axhline(best * PLATEAU, color="black", linewidth=0.8, linestyle=":", label=f"{PLATEAU} x the lowest")
    axes.set(yscale="log", title=f"Quality against NFE, {measurements.budget['model']}")
    nfe_axis(axes, NFE)
    distance_axis(axes, measurements.budget["images"])
    figure.legend(fontsize=8, loc="outside right upper")  # the curves leave no room inside
    shown = "Frechet distance against evaluations an image, with 95% intervals over seeds; lower is better"
    return Drawn((_finding(measurements),), (("quality-vs-nfe", shown, figure),))


def _lowest(points: Sequence[Json]) -> float | None:
    return min((point["distance"] for point in points), default=None)


def plateau_nfe(points: Sequence[Json], level: float) -> float | None:
    """The fewest evaluations of a curve's points from which on none is above the level."""
    reached: float | None = None
    for point in sorted(points, key=lambda point: point["nfe"], reverse=True):
        if point["distance"] > level:
            break
        reached = point["nfe"]
    return reached


def _finding(measurements: Measurements) -> Finding:
    claim = "Heun's method on the paper's noise levels reaches the plateau in fewer evaluations than the others"
    rule = (
        f"the plateau is {PLATEAU} times the lowest distance of all curves (the paper's 3%); a curve has reached it "
        "from the first measured NFE on after which it is never above. Confirmed: the paper's choice needs fewer than "
        "every original sampler (Euler on VP and VE levels, DDIM, RK45); different here: another one needs fewer still"
    )
    curves = {name: measurements.where(curve=name) for name in (*CURVES, BLACK_BOX)}
    if not all(curves.values()):
        return not_measured(claim, rule, f"missing: {', '.join(name for name, found in curves.items() if not found)}")
    level = PLATEAU * (_lowest(measurements.points) or 0.0)
    reached = {name: plateau_nfe(found, level) for name, found in curves.items()}
    ours, originals = reached[OURS], [reached[name] for name in (*list(CURVES)[:3], BLACK_BOX)]
    others = [reached[name] for name in CURVES if name != OURS]
    verdict: Verdict = "confirmed"
    if ours is None or any(nfe is not None and nfe <= ours for nfe in originals):
        verdict = "not confirmed"
    elif any(nfe is not None and nfe < ours for nfe in others):
        verdict = "different here"
    last = {name: f"not by {max(point['nfe'] for point in found):.3g}" for name, found in curves.items()}
    told = [f"{name}: {last[name] if nfe is None else f'{nfe:.3g}'}" for name, nfe in reached.items()]
    return Finding(claim, rule, verdict, f"NFE to reach {level:.3f}: {'; '.join(told)}")


SECTION = Section(
    "quality-vs-nfe",
    "Quality against evaluations",
    "Karras et al. 2022, Figure 2",
    points,
    draw,
    ("One network, trained with EDM's preconditioning, where the paper has three: only the samplers differ here.",),
)
