"""Loss by noise level (Figure 5a of the EDM paper), measured over data and drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..files import atomic_path
from .loss import Loss


@dataclass(frozen=True)
class Level:
    """At one sigma, over images: |D - y|^2 a pixel; lambda(sigma) times that, and its standard deviation."""

    sigma: float
    error: float
    loss: float
    std: float


def levels(denoiser: Denoiser, count: int) -> list[float]:
    """``count`` noise levels evenly in ln sigma, from 0.002 to 80 as far as the network knows them, to its nearest.

    Raises ValueError for fewer than two."""
    if count < 2:
        raise ValueError(f"sigmas is {count}; allowed: an integer from 2")
    low, high = max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
    evenly = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()
    return denoiser.round_sigma(evenly).unique().tolist()


@torch.no_grad()
def loss_curve(
    denoiser: Denoiser,
    loss: Loss,
    images: Tensor,
    class_labels: Tensor | None,
    sigmas: Sequence[float],
    *,
    seed: int = 0,
    batch_size: int = 100,
) -> list[Level]:
    """Each level with the same images and the same noise; images [N, C, H, W], class_labels [N, label_dim]."""
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    found = []
    for sigma in sigmas:
        parts = []
        for at in torch.arange(len(images)).split(batch_size):
            sigma_of = torch.full([len(at)], sigma)
            labels = None if class_labels is None else class_labels[at]
            parts.append(loss.error(denoiser, images[at], eps[at], sigma_of, labels, None))
        error = torch.cat(parts).double()
        weight = loss.weight(torch.tensor(sigma)).item()
        found.append(Level(sigma, error.mean().item(), weight * error.mean().item(), weight * error.std().item()))
    return found


def density(loss: Loss, edges: Tensor, draws: int = 200_000) -> Tensor:
    """p_train of ln sigma between ``edges`` of ln sigma [K + 1], float64 [K]: the share of draws by the width."""
    drawn = loss.sigma(draws, torch.Generator().manual_seed(0)).double().log()
    return torch.histogram(drawn[drawn.isfinite()], edges.double()).hist / draws / edges.double().diff()


def plot(path: Path, loss: Loss, curves: dict[str, list[Level]], title: str) -> None:
    """PNG of curves by name, each with a band of one standard deviation over images; p_train shaded.

    Raises ImportError saying what to install where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'edm-engine[figures]'") from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots()
    for name, curve in curves.items():
        sigmas = [level.sigma for level in curve]
        axes.plot(sigmas, [level.loss for level in curve], "o-", markersize=3, label=name)
        lower, upper = ([level.loss + sign * level.std for level in curve] for sign in (-1, 1))
        axes.fill_between(sigmas, lower, upper, alpha=0.2)
    highest = max(level.loss for curve in curves.values() for level in curve)
    axes.set(xscale="log", ylim=(0, 1.1 * highest), xlabel="sigma", ylabel="lambda(sigma) |D - y|^2 a pixel")
    edges = torch.linspace(math.log(sigmas[0]), math.log(sigmas[-1]), 61)
    shaded = axes.twinx()
    shaded.stairs(density(loss, edges).tolist(), edges.exp().tolist(), fill=True, color="grey", alpha=0.25)
    shaded.set(ylim=(0, None), ylabel="p_train of ln sigma (shaded)")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
