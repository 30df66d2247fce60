"""Trajectories of the ODE in one dimension, and how much they bend: the EDM paper's Figure 3."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
PIECES = 60
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
    return [float(f"{number:.10g}") for number in numbers]


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


@dataclass(frozen=True)
class Bends:
    """Where a curve turns, and by how much: sigma [PIECES - 1], angle in radians, curvature in radians a side."""

    sigma: np.ndarray
    angle: np.ndarray
    curvature: np.ndarray


def bends(sigmas: np.ndarray, t: np.ndarray, x: np.ndarray, height: float) -> Bends:
    """Of x over t, both [levels], in the square in which t and ``height`` are one side.

    The curve is cut into `PIECES` of equal length: between neighbouring levels, many of them very near each other,
    an angle would be rounding error.
    """
    across, up = t / t.max(), x / height
    length = np.concatenate([[0.0], np.hypot(np.diff(across), np.diff(up)).cumsum()])
    even = np.linspace(0, length[-1], PIECES + 1)
    direction = np.arctan2(np.diff(np.interp(even, length, up)), np.diff(np.interp(even, length, across)))
    angle = np.abs(np.diff(np.unwrap(direction)))
    return Bends(np.interp(even, length, sigmas)[1:-1], angle, angle / (length[-1] / PIECES))


def draw(measurements: Measurements) -> Drawn:
    found = measurements.where(what="trajectories")
    claim = "trajectories of the EDM formulation, sigma(t) = t and s = 1, are straighter than those of VP and VE"
    rule = (
        f"the turning of a curve is the sum of the angles between its {PIECES} pieces of equal length, when t and s x "
        f"fill a square; the mean over {TRAJECTORIES} trajectories. Confirmed: EDM's is the smallest; not confirmed: "
        "it is not"
    )
    if not found:
        return Drawn((not_measured(claim, rule, "no trajectories are measured yet"),))
    sigmas = torch.tensor(found[0]["sigma"], dtype=torch.float64)
    x = torch.tensor(found[0]["x"], dtype=torch.float64)
    figure = new_figure(12, 6.5)
    grid = figure.subplots(2, len(FORMULATIONS), height_ratios=[2, 1])
    turned, told = {}, []
    for (top, bottom), name in zip(grid.T, FORMULATIONS, strict=True):
        t, s = formulation(name, sigmas)
        curves = (s[:, None] * x).numpy()
        bent = [bends(sigmas.numpy(), t.numpy(), curve, float(np.abs(curves).max())) for curve in curves.T]
        turned[name] = math.degrees(sum(each.angle.sum() for each in bent) / len(bent))
        told.append(f"{name} {turned[name]:.1f} degrees, 90% of it at sigma {_where(bent)}")
        top.plot(t, curves, color=COLOURS[0], linewidth=0.8)
        top.set(title=f"{name}: a trajectory turns {turned[name]:.0f} degrees", xlabel=_T[name], ylabel=_X[name])
        for each in bent:
            bottom.plot(each.sigma, each.curvature, color=COLOURS[1], linewidth=0.8)
        bottom.set(xscale="log", xlabel="sigma", ylabel="curvature, radians\nper side of the square")
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
    title = f"The probability-flow ODE for data of -1 and 1, ideal denoiser, sigma from {SIGMA_MIN} to {SIGMA_MAX:g}"
    figure.suptitle(title)
    verdict: Verdict = "confirmed" if turned["EDM"] < min(turned["VP"], turned["VE"]) else "not confirmed"
    shown = "above: trajectories s x against t; below: their curvature, with t and s x scaled to a square, by sigma"
    finding = Finding(claim, rule, verdict, f"turning: {'; '.join(told)}")
    return Drawn((finding,), (("trajectories", shown, figure),))


def _where(bent: Sequence[Bends]) -> str:
    """The sigmas between which the middle 90% of all turning is."""
    sigma, angle = (np.concatenate([getattr(each, name) for each in bent]) for name in ("sigma", "angle"))
    order = sigma.argsort()
    share = angle[order].cumsum() / angle.sum()
    low, high = (sigma[order][np.searchsorted(share, part)] for part in (0.05, 0.95))
    return f"{low:.2g} to {high:.2g}"


SECTION = Section(
    "trajectories",
    "Trajectories and curvature in one dimension",
    "Karras et al. 2022, Figure 3",
    points,
    draw,
    (f"Solved by the engine in {LEVELS} levels of {SUBSTEPS} Heun steps each; all three are one solution in sigma.",),
)
