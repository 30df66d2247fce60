"""A plan as a picture: noise levels, step sizes, churn."""

import textwrap
from pathlib import Path

from ..files import atomic_path
from ..plan import Plan


def plot_plan(plan: Plan, path: Path) -> None:
    """PNG of sigma, the steps between noise levels and the noise added, by network evaluation.

    Raises ImportError saying what to install where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'edm-engine[figures]'") from None
    index = list(range(1, plan.nfe + 1))
    finite = [sigma if sigma < float("inf") else float("nan") for sigma in plan.sigmas]
    steps = [abs(a - b) for a, b in zip(finite, [*finite[1:], 0.0], strict=True)]
    noise = [row.std for row in plan.rows[:-1]]
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    figure.suptitle(textwrap.fill(str(plan.sampler), 100), fontsize=9)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(index, finite, "o-", markersize=3)
    top.set(yscale="log", ylabel="sigma of the evaluation")
    middle.stem(index, [step or float("nan") for step in steps], basefmt=" ", markerfmt=".")
    middle.set(yscale="log", ylabel="distance to the next sigma")
    if any(noise):
        bottom.stem(index, [std or float("nan") for std in noise], basefmt=" ", markerfmt=".")
        bottom.set_yscale("log")
    else:
        bottom.text(0.5, 0.5, "no noise is added", ha="center", transform=bottom.transAxes)
    bottom.set(ylabel="std of the noise added before", xlabel=f"evaluation, of {plan.nfe}")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
