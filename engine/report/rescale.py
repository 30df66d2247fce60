"""Guidance rescale: strong guidance overexposes images, and a guided output of the plain one's deviation does not."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..guidance import ClassifierFree
from ..metrics.intervals import jackknife, means_without
from .brightness import ZERO
from .measurements import Json, Measurements
from .plotting import new_figure, style
from .section import Finding, Point, Table, Verdict, not_measured
from .trained import Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS = (1.0, 2.0, 4.0, 7.5)  # the last is the paper's; 1 is no guidance
PHI = 0.7  # the paper's
WHITE = 0.98  # of [-1, 1]: the brightest 3 of 256 values
MEASURES = {
    "deviation": "standard deviation of the pixels of an image",
    "white": f"share of pixels from {WHITE} on",
    "clipped": "mean distance of pixels from [-1, 1]",
}


def points(networks: Trained) -> Iterator[Point]:
    """The strongest weight first, and none."""
    for weight in (WEIGHTS[-1], *WEIGHTS[:-1]):
        for phi in (0.0, PHI) if weight > 1 else (0.0,):
            settings = {"what": "guidance", "trained": ZERO, "weight": weight, "rescale": phi} | networks.settings
            yield Point(settings, lambda w=weight, p=phi: measure(networks, w, p))  # type: ignore[misc]


def exposure(images: Tensor) -> dict[str, Tensor]:
    """`MEASURES` of each image [N, C, H, W], not clamped; float64 [N]. What lies beyond [-1, 1] clamping cuts off."""
    pixels = images.double().flatten(1)
    return {
        "deviation": pixels.std(1, correction=0),
        "white": (pixels >= WHITE).double().mean(1),
        "clipped": (pixels.abs() - 1).clamp(min=0).mean(1),
    }


def measure(networks: Trained, weight: float, phi: float) -> dict[str, Json]:
    """Means over as many images as the budget has, from seed 0 on with the classes in turn, and over the data, whose
    classes are as many. without: the mean without each block of seeds."""
    drawing, count = networks.engine(ZERO), networks.budget.images
    labels = torch.arange(count) % drawing.denoiser.label_dim
    guidance = ClassifierFree(weight, rescale=phi)
    images = drawing.sample(
        seeds=range(count), class_labels=labels.tolist(), sampler=networks.sampler, guidance=guidance
    )
    drawn, real = exposure(images.cpu()), exposure(networks.data[0])
    return {
        name: {
            "samples": drawn[name].mean().item(),
            "without": means_without(drawn[name]),
            "data": real[name].mean().item(),
        }
        for name in MEASURES
    }


def _by_setting(measurements: Measurements) -> dict[tuple[float, float], Json]:
    """By weight and phi, in their order."""
    found = {(point["weight"], point["rescale"]): point for point in measurements.where(what="guidance")}
    return {each: found[each] for each in sorted(found)}


def finding(measurements: Measurements) -> Finding:
    strong = WEIGHTS[-1]
    claim = f"strong guidance overexposes images; rescaled by phi = {PHI}, it does not"
    rule = (
        f"by the {MEASURES['deviation']}, averaged over images, at weight {strong:g}: its excess is what it has above "
        "the data's. Images are overexposed where it is above 0 by more than its 95% interval and above that of no "
        "guidance by more than the paired one. Confirmed: they are, and rescaled they keep less than half of the "
        "excess, beyond the interval of this share (below the data counts as much as above); different here: they "
        "keep less than all of it, beyond the interval, but not less than half; not confirmed: anything else"
    )
    found = _by_setting(measurements)
    needed = {"without rescaling": (strong, 0.0), "with it": (strong, PHI), "no guidance": (1.0, 0.0)}
    there = [name for name, each in needed.items() if each in found]
    if len(there) < len(needed):
        return not_measured(claim, rule, f"{len(there)} of the {len(needed)} points it needs are measured")
    plain, rescaled, none = (found[each]["deviation"] for each in needed.values())
    told = "; ".join(_told(name, found[each]) for name, each in needed.items())
    data = plain["data"]
    numbers = f"{told}; data: {data:.3f}, {_white(found[strong, 0.0]['white']['data'])}"
    differences = [one - other for one, other in zip(plain["without"], none["without"], strict=True)]
    over_none = plain["samples"] - none["samples"] > jackknife(differences)
    if not (over_none and plain["samples"] - data > jackknife(plain["without"])):
        return Finding(claim, rule, "not confirmed", f"{numbers}; not overexposed")
    pairs = zip(rescaled["without"], plain["without"], strict=True)
    kept = abs(rescaled["samples"] - data) / (plain["samples"] - data)
    half = jackknife([abs(after - data) / (before - data) for after, before in pairs])
    verdict: Verdict = "confirmed" if kept + half < 0.5 else "different here" if kept + half < 1 else "not confirmed"
    return Finding(claim, rule, verdict, f"{numbers}; rescaled they keep {kept:.2f} +- {half:.2f} of the excess")


def _told(name: str, point: Json) -> str:
    deviation = point["deviation"]
    interval = f"{deviation['samples']:.3f} +- {jackknife(deviation['without']):.3f}"
    return f"{name}: deviation {interval}, {_white(point['white']['samples'])}"


def _white(share: float) -> str:
    return f"{100 * share:.1f}% of pixels white"


def figure(measurements: Measurements) -> "Figure | None":
    """The measures against the weight, rescaled and not, and the data's; None where none is measured."""
    found = _by_setting(measurements)
    if not found:
        return None
    drawn = new_figure(12, 4.2)
    drawn.suptitle(
        f"Exposure by the weight of guidance, with zero terminal SNR, {measurements.budget['images']} images"
    )
    for axes, name in zip(drawn.subplots(1, len(MEASURES)), MEASURES, strict=True):
        _panel(axes, found, name)
    return drawn


def _panel(axes: "Axes", found: dict[tuple[float, float], Json], name: str) -> None:
    for index, phi in enumerate((0.0, PHI)):
        chosen = {weight: point[name] for (weight, p), point in found.items() if p == phi or weight == 1}
        values = [value["samples"] for value in chosen.values()]
        bars = [jackknife(value["without"]) for value in chosen.values()]
        axes.errorbar(
            list(chosen), values, yerr=bars, label=f"phi = {phi:g}", capsize=2, elinewidth=0.7, **style(index)
        )
    data = next(iter(found.values()))[name]["data"]
    axes.axhline(data, color="black", linestyle=":", label="the data's")
    axes.set(xlabel="weight of classifier-free guidance (1: none)")
    axes.set_ylabel(MEASURES[name])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def table(measurements: Measurements) -> Table:
    found = list(_by_setting(measurements).items())
    rows = [
        (f"{weight:g}", f"{phi:g}", *(f"{point[name]['samples']:.4f}" for name in MEASURES))
        for (weight, phi), point in found
    ]
    if found:
        rows.append(("data", "", *(f"{found[0][1][name]['data']:.4f}" for name in MEASURES)))
    return Table("Guidance and exposure", ("weight", "phi", *MEASURES.values()), tuple(rows))
