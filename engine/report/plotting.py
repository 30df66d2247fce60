"""What all figures share: matplotlib without its global state, colours, axes of evaluations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..metrics import Score
from .measurements import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers can tell apart; a marker each for those who print in black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "X")


def new_figure(width: float = 8.0, height: float = 5.0) -> "Figure":
    """In inches. Raises ImportError saying what to install where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a report needs matplotlib: pip install 'edm-engine[figures]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def style(index: int) -> dict[str, Any]:
    """Of curve ``index``."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}


def scores_against(axes: "Axes", points: Sequence[Json], x: str, label: str, index: int, joined: bool = True) -> None:
    """Frechet distances with their intervals against an entry of the points."""
    ordered = sorted(points, key=lambda point: point[x])
    scores = [Score.from_json(point) for point in ordered]
    bars = [[s.distance - s.low for s in scores], [s.high - s.distance for s in scores]]
    at = [point[x] for point in ordered]
    look = style(index) | {"label": label, "capsize": 2, "elinewidth": 0.7, "linestyle": "-" if joined else "none"}
    axes.errorbar(at, [s.distance for s in scores], yerr=bars, **look)


def distance_axis(axes: "Axes", images: int) -> None:
    axes.set_ylabel(f"Frechet distance, classifier's features, {images:,} images")
    axes.grid(alpha=0.3, which="both")


def nfe_axis(axes: "Axes", ticks: Sequence[int]) -> None:
    axes.set(xscale="log", xlabel="NFE: network evaluations an image")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
