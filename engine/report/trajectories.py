"""Trajectories of the ODE in one dimension, and how much they bend: the EDM paper's Figure 3."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..engine import Engine
from ..networks.ideal import IdealNetwork
from ..preconditioning import EDM, Direct
from ..samplers import Levels
from ..samplers.ablation import Scaling, Schedule
from ..samplers.levels import LinearSchedule, VESchedule
from .between import Between
from .measurements import Measurements
from .plotting import COLOURS, new_figure
from .section import Budget, Drawn, Finding, Point, Section, Verdict, not_measured

# Data: one number, -1 or 1. sigma ends where the paper's figure does.
SIGMA_MAX, SIGMA_MIN, LEVELS, TRAJECTORIES, SUBSTEPS = 25.0, 0.002, 400, 12, 8
FORMULATIONS = ("VP", "VE", "EDM")
_X = {"VP": "s x, s = 1 / sqrt(1 + sigma^2)", "VE": "x", "EDM": "x"}
_T = {"VP": "t, of the VP schedule", "VE": "t = sigma^2", "EDM": "t = sigma"}


def points(budget: Budget) -> Iterator[Point]:
    yield Point({"what": "trajectories"}, solve)


def solve() -> dict[str, Any]:
    """x(sigma) of the probability-flow ODE with s = 1 from evenly spread latents; the ideal denoiser, float64."""
    data = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    engine = Engine(
        Denoiser(IdealNetwork(data), Direct(), img_shape=(1, 1, 1)), dtype=torch.float64, output_dtype=torch.float64
    )
    quantiles = (torch.arange(TRAJECTORIES, dtype=torch.float64) + 0.5) / TRAJECTORIES
    x = SIGMA_MAX * torch.special.ndtri(quantiles).reshape(-1, 1, 1, 1)
    sigmas = torch.logspace(math.log10(SIGMA_MAX), math.log10(SIGMA_MIN), LEVELS, dtype=torch.float64).tolist()
    states = [x]
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = engine.sample(latents=x, sampler=Between(sigma, sigma_next, SUBSTEPS))
        states.append(x)
    return {"sigma": _rounded(sigmas), "x": [_rounded(state.flatten().tolist()) for state in states]}


def _rounded(numbers: list[float]) -> list[float]:
    return [float(f"{number:.7g}") for number in numbers]


def formulation(name: str, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """t(sigma) and s(sigma) of "VP", "VE" or "EDM". One solution in sigma is that of all: they differ in t and s x."""
    schedules: dict[str, Schedule] = {
        "VP": Levels(discretization="vp").vp_schedule(EDM()),
        "VE": VESchedule(),
        "EDM": LinearSchedule(),
    }
    schedule = schedules[name]
    t = schedule.sigma_inv(sigmas)
    return t, Scaling(schedule, name == "VP").s(t)


def turning(t: Tensor, x: Tensor) -> Tensor:
    """How far the curves x [levels, n] over t turn between each two pieces, radians [levels - 2, n].

    Drawn in a square: t and x each divided by the largest.
    """
    slope = torch.atan2((x / x.abs().max()).diff(dim=0), (t / t.max()).diff()[:, None].expand(-1, x.shape[1]))
    return slope.diff(dim=0).abs()


def draw(measurements: Measurements) -> Drawn:
    found = measurements.where(what="trajectories")
    claim = "trajectories of the EDM formulation, sigma(t) = t and s = 1, are straighter than those of VP and VE"
    rule = (
        "the turning of a curve is the sum of the angles between its pieces when t and s x fill a square, the mean "
        f"over {TRAJECTORIES} trajectories. Confirmed: EDM's is the smallest; not confirmed: it is not"
    )
    if not found:
        return Drawn((not_measured(claim, rule, "no trajectories are measured yet"),))
    sigmas, x = torch.tensor(found[0]["sigma"]), torch.tensor(found[0]["x"])
    figure = new_figure(12, 6.5)
    grid = figure.subplots(2, len(FORMULATIONS), sharex="col", height_ratios=[2, 1])
    turned, told = {}, []
    for (top, bottom), name in zip(grid.T, FORMULATIONS, strict=True):
        t, s = formulation(name, sigmas)
        curves = s[:, None] * x
        angles = turning(t, curves)
        turned[name] = angles.sum(0).mean().item()
        top.plot(t, curves, color=COLOURS[0], linewidth=0.8)
        top.set(title=f"{name}: turns {math.degrees(turned[name]):.0f} degrees", ylabel=_X[name])
        bottom.plot(t[1:-1], angles.mean(1) / _lengths(t, curves), color=COLOURS[1])
        bottom.set(yscale="log", xlabel=_T[name], ylabel="curvature, radians\nper side of the square")
        told.append(f"{name} {math.degrees(turned[name]):.1f} degrees, 90% of it at sigma {_where(sigmas, angles)}")
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
    title = f"The probability-flow ODE for data of -1 and 1, ideal denoiser, sigma from {SIGMA_MIN} to {SIGMA_MAX:g}"
    figure.suptitle(title)
    verdict: Verdict = "confirmed" if turned["EDM"] < min(turned["VP"], turned["VE"]) else "not confirmed"
    shown = "above: trajectories s x against t; below: their mean curvature, with t and s x scaled to a square"
    finding = Finding(claim, rule, verdict, f"turning: {'; '.join(told)}")
    return Drawn((finding,), (("trajectories", shown, figure),))


def _lengths(t: Tensor, x: Tensor) -> Tensor:
    """Of the curves' pieces, the mean over curves, where `turning` has its angles."""
    across, up = (t / t.max()).diff()[:, None], (x / x.abs().max()).diff(dim=0)
    lengths = (across.square() + up.square()).sqrt()
    return ((lengths[1:] + lengths[:-1]) / 2).mean(1)


def _where(sigmas: Tensor, angles: Tensor) -> str:
    """The middle 90% of all turning."""
    share = angles.sum(1).cumsum(0) / angles.sum()
    first, last = (sigmas[1:-1][torch.searchsorted(share, part).clamp(max=len(share) - 1)] for part in (0.05, 0.95))
    return f"{last:.2g} to {first:.2g}"


SECTION = Section(
    "trajectories",
    "Trajectories and curvature in one dimension",
    "Karras et al. 2022, Figure 3",
    points,
    draw,
    (f"Solved by the engine in {LEVELS} levels of {SUBSTEPS} Heun steps each; all three are one solution in sigma.",),
)
