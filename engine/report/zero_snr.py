"""Zero terminal SNR: how much signal a schedule leaves at its last timestep, which timesteps are visited, and what both
do to images of two networks that are trained to be compared."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from .. import discrete
from . import brightness, rescale
from .measurements import Measurements
from .plotting import COLOURS, MARKERS, new_figure
from .section import Budget, Drawn, Finding, Point, Section, Table, not_measured
from .trained import IMAGES, Trained
from .trained import STEPS as SAMPLED_STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T, STEPS = 1000, (5, 25)
SCHEDULES = get_args(discrete.Schedule)
SPACINGS = get_args(discrete.Spacing)


def points(budget: Budget) -> Iterator[Point]:
    for schedule in SCHEDULES:
        yield Point({"what": "terminal", "schedule": schedule}, lambda s=schedule: terminal(s))  # type: ignore[misc]
    for steps in STEPS:
        for spacing in SPACINGS:
            yield Point(
                {"what": "timesteps", "steps": steps, "spacing": spacing},
                lambda n=steps, s=spacing: {"timesteps": discrete.timesteps(T, n, s)},  # type: ignore[misc]
            )
    networks = Trained(budget)
    yield from brightness.points(networks)
    yield from rescale.points(networks)


def terminal(schedule: discrete.Schedule) -> dict[str, float]:
    """sqrt(alpha_bar_T), the share of the image's amplitude left at the last timestep, as it is and rescaled."""
    betas = discrete.betas(schedule, T)
    bars = (discrete.alpha_bar(betas), discrete.alpha_bar(discrete.zero_terminal_snr(betas)))
    usual, rescaled = (bar[-1].sqrt().item() for bar in bars)
    return {"signal": usual, "signal_rescaled": rescaled, "snr": discrete.snr(bars[0])[-1].item()}


def draw(measurements: Measurements) -> Drawn:
    judged = (_terminal, _timesteps, brightness.finding, rescale.finding)
    figures = [
        ("zero-snr", "the timesteps that leading, linspace and trailing visit at S = 5 and 25", _figure(measurements)),
        (
            "brightness",
            "mean brightness of samples of each class against the training images', with 95% intervals over seeds, and "
            "the lines fitted to the classes",
            brightness.figure(measurements),
        ),
        (
            "guidance-rescale",
            "contrast, white pixels and what clamping would cut off, against the weight of guidance, with 95% "
            "intervals over seeds",
            rescale.figure(measurements),
        ),
    ]
    return Drawn(
        tuple(judge(measurements) for judge in judged),
        tuple((name, shown, figure) for name, shown, figure in figures if figure is not None),
        tuple(table for table in _tables(measurements) if table.rows),
    )


def _figure(measurements: Measurements) -> "Figure | None":
    chosen = measurements.where(what="timesteps")
    if not chosen:
        return None
    figure = new_figure(10, 4)
    axes = figure.subplots()
    names = [f"{point['spacing']}, S = {point['steps']}" for point in chosen]
    for row, point in enumerate(chosen):
        kind = SPACINGS.index(point["spacing"])
        axes.plot(point["timesteps"], [row] * len(point["timesteps"]), MARKERS[kind], color=COLOURS[kind], markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(T, color="black", linestyle=":", linewidth=0.8)
    axes.set(xlabel=f"timestep visited, of 1 (image) to {T} (noise; dotted)", title="Which timesteps are visited")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _tables(measurements: Measurements) -> tuple[Table, ...]:
    timesteps = tuple(
        (point["spacing"], str(point["steps"]), " ".join(map(str, point["timesteps"])))
        for point in measurements.where(what="timesteps")
    )
    signals = tuple(
        (point["schedule"], f"{point['signal']:.4g}", f"{point['snr']:.3g}", f"{point['signal_rescaled']:.3g}")
        for point in measurements.where(what="terminal")
    )
    return (
        Table(f"Timesteps of T = {T}", ("spacing", "S", "timesteps"), timesteps),
        Table(
            "Signal left at the last timestep",
            ("schedule", "sqrt(alpha_bar_T)", "SNR", "sqrt(alpha_bar_T), rescaled"),
            signals,
        ),
        brightness.table(measurements),
        rescale.table(measurements),
    )


def _terminal(measurements: Measurements) -> Finding:
    claim = "common schedules leave signal at their last timestep; rescaled by Algorithm 1 they leave none"
    rule = "Confirmed: sqrt(alpha_bar_T) is above 0 for every schedule, and exactly 0 for every rescaled one"
    found = measurements.where(what="terminal")
    if len(found) < len(SCHEDULES):
        return not_measured(claim, rule, f"{len(found)} of {len(SCHEDULES)} schedules are measured")
    holds = all(point["signal"] > 0 and point["signal_rescaled"] == 0 for point in found)
    told = ", ".join(f"{point['schedule']} {point['signal']:.4g}" for point in found)
    return Finding(
        claim,
        rule,
        "confirmed" if holds else "not confirmed",
        f"sqrt(alpha_bar_T): {told}; rescaled: all 0" if holds else told,
    )


def _timesteps(measurements: Measurements) -> Finding:
    claim = "leading never visits the last timestep, where sampling begins; linspace and trailing do"
    rule = f"Confirmed: for every S the first timestep of leading is below T = {T}, and of the others it is T"
    found = measurements.where(what="timesteps")
    if len(found) < len(STEPS) * len(SPACINGS):
        return not_measured(claim, rule, f"{len(found)} of {len(STEPS) * len(SPACINGS)} selections are measured")
    holds = all((point["timesteps"][0] < T) == (point["spacing"] == "leading") for point in found)
    told = ", ".join(f"{point['spacing']} at S = {point['steps']} begins at {point['timesteps'][0]}" for point in found)
    return Finding(claim, rule, "confirmed" if holds else "not confirmed", told)


SECTION = Section(
    "zero-snr",
    "Zero terminal SNR and timestep selection",
    'Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed"',
    points,
    draw,
    (
        "The brightness and the guidance are of two small networks trained for this: both predict v, drop one label in "
        f"ten, see {IMAGES:,} images and differ in their betas alone (presets zero-snr and usual-snr). The usual betas "
        "leave 0.28 of the image's amplitude at t = T, four times as much as Stable Diffusion's, so that a few minutes "
        "of training show it; the paper's effect is smaller. Guided images are of the one with zero terminal SNR. "
        f"Both draw by DDIM, {SAMPLED_STEPS} trailing timesteps. Intervals are over seeds, not over training runs.",
    ),
)
