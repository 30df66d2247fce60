"""Whether samples are as bright as the data, by networks trained with zero terminal SNR and without."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..metrics.intervals import jackknife
from ..training.brightness import TRAINED, Rows, compare, slope, summary
from ..training.data import FASHION_MNIST_CLASSES
from .measurements import Measurements
from .plotting import new_figure, style
from .section import Finding, Point, Table, Verdict, not_measured
from .trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZERO, USUAL = TRAINED  # as they are called


def points(networks: Trained) -> Iterator[Point]:
    for trained in TRAINED:
        settings = {"what": "brightness", "trained": trained} | networks.settings
        yield Point(settings, lambda name=trained: {"rows": list(_rows(networks, name))})  # type: ignore[misc]


def _rows(networks: Trained, trained: str) -> Iterator[dict[str, object]]:
    classes = FASHION_MNIST_CLASSES
    return compare(
        trained,
        networks.engine(trained),
        *networks.data,
        sampler=networks.sampler,
        per_class=max(20, networks.budget.images // len(classes)),  # 20: the least that `compare` takes
        classes=classes,
    )


def rows_of(measurements: Measurements) -> dict[str, Rows]:
    """By the network's name."""
    return {point["trained"]: point["rows"] for point in measurements.where(what="brightness")}


def finding(measurements: Measurements) -> Finding:
    claim = "a model trained without zero terminal SNR draws images of medium brightness; trained with it, of all"
    rule = (
        "the slope is that of the classes' mean brightness, samples' against the data's: 1 where samples are as bright "
        "as the data, below 1 where dark and bright classes are drawn together. Confirmed: without zero terminal SNR "
        "it is below 1 by more than its 95% interval, and with it nearer to 1 by more than the paired interval; "
        "different here: without it, the slope is not below 1 by more than its interval; not confirmed: it is, but "
        "with zero terminal SNR it is no nearer"
    )
    rows = rows_of(measurements)
    if not set(TRAINED) <= set(rows):
        return not_measured(claim, rule, f"{len(rows)} of {len(TRAINED)} networks are measured")
    (usual, usual_without), (zero, zero_without) = slope(rows[USUAL]), slope(rows[ZERO])
    together = 1 - usual > jackknife(usual_without)
    nearer = abs(usual - 1) - abs(zero - 1)
    pairs = zip(usual_without, zero_without, strict=True)
    half = jackknife([abs(without - 1) - abs(with_ - 1) for without, with_ in pairs])
    verdict: Verdict = "different here" if not together else "confirmed" if nearer > half else "not confirmed"
    told = {name: summary(rows[name]) for name in TRAINED}
    numbers = "; ".join(
        f"{'with' if name == ZERO else 'without'} zero terminal SNR: slope {found['slope']:.3f} "
        f"({found['interval'][0]:.3f} to {found['interval'][1]:.3f}), classes differ from the data by "
        f"{found['mean_difference']:.3f} on average"
        for name, found in told.items()
    )
    return Finding(claim, rule, verdict, f"{numbers}; with it nearer to 1 by {nearer:+.3f} +- {half:.3f}")


def figure(measurements: Measurements) -> "Figure | None":
    """Samples' mean brightness against the data's, a point a class, with 95% intervals; None where none is measured."""
    rows = rows_of(measurements)
    if not rows:
        return None
    drawn = new_figure(8, 6.5)
    drawn.suptitle("Brightness of samples by class, two networks trained alike but for the betas")
    axes = drawn.subplots()
    for index, (trained, found) in enumerate(rows.items()):
        real = [row["mean_brightness_data"] for row in found]
        samples = [row["mean_brightness_samples"] for row in found]
        halves = [(row["interval"][1] - row["interval"][0]) / 2 for row in found]
        fitted, middle = slope(found)[0], (sum(real) / len(real), sum(samples) / len(samples))
        label = f"{_betas(trained)}: slope {fitted:.2f}"
        axes.errorbar(
            real, samples, yerr=halves, label=label, capsize=2, elinewidth=0.7, linestyle="none", **style(index)
        )
        axes.axline(middle, slope=fitted, color=style(index)["color"], linewidth=0.8)
    names = sorted((row["mean_brightness_data"], row["class"]) for row in next(iter(rows.values())))
    axes.axline(
        (names[0][0], names[0][0]), slope=1, color="black", linestyle=":", label="as bright as the data: slope 1"
    )
    above = axes.secondary_xaxis("top")
    above.set_xticks([at for at, _ in names], [name for _, name in names], rotation=90, fontsize=8)
    axes.set(xlabel="mean brightness of the training images of a class (black -1, white 1)")
    axes.set_ylabel("mean brightness of samples of that class")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return drawn


def _betas(trained: str) -> str:
    return "with zero terminal SNR" if trained == ZERO else "without"


def table(measurements: Measurements) -> Table:
    """A row a class, the darkest of the data first; the networks that are measured side by side."""
    found = rows_of(measurements)
    head = ("class", "data", *(f"samples, {_betas(trained)}" for trained in found))
    rows = [
        (each[0]["mean_brightness_data"], each[0]["class"], *(_samples(row) for row in each))
        for each in zip(*found.values(), strict=True)
    ]
    told = tuple((name, f"{data:.3f}", *samples) for data, name, *samples in sorted(rows))
    return Table("Mean brightness by class, black -1 and white 1, with 95% intervals", head, told)


def _samples(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['mean_brightness_samples']:.3f} ({low:.3f} to {high:.3f})"
