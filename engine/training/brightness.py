"""Whether samples are as bright as the data: what training without zero terminal SNR spoils (Lin et al. 2024).

A network trained to see a little of the image at t = T takes the mean of the noise that it starts from for the image's:
its dark classes come out too bright, its bright ones too dark.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..api import sample
from ..denoiser import Denoiser
from ..metrics.intervals import blocks_of, jackknife
from ..samplers import Sampler


def brightness(images: Tensor) -> Tensor:
    """The mean of each image [N, C, H, W] in [-1, 1], float64 [N]."""
    return images.double().clamp(-1, 1).flatten(1).mean(1)


def compare(
    trained: str,
    denoiser: Denoiser,
    images: Tensor,
    labels: Tensor,
    *,
    sampler: Sampler,
    per_class: int,
    classes: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """One row a class: the mean brightness of ``per_class`` samples with its 95% interval, and that of real images.

    images [N, C, H, W] in [-1, 1] with labels [N]; seeds count from 0. Raises ValueError for fewer than 20 a class.
    """
    if per_class < 20:
        raise ValueError(f"per_class is {per_class}; allowed: from 20, for intervals over blocks of samples")
    for label, name in enumerate(classes):
        seeds = range(label * per_class, (label + 1) * per_class)
        drawn = brightness(sample(denoiser, seeds=seeds, class_labels=label, sampler=sampler))
        block = blocks_of(per_class)
        half = jackknife([drawn[block != b].mean().item() for b in block.unique().tolist()])
        mean = drawn.mean().item()
        yield {
            "trained": trained,
            "class": name,
            "mean_brightness_samples": mean,
            "interval": [mean - half, mean + half],
            "mean_brightness_data": brightness(images[labels == label]).mean().item(),
        }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Over the classes of rows of one network: the slope of the samples' brightness by the data's, 1 where all is well
    and below it where dark and bright are drawn together; and the mean absolute difference."""
    drawn = torch.tensor([row["mean_brightness_samples"] for row in rows], dtype=torch.float64)
    real = torch.tensor([row["mean_brightness_data"] for row in rows], dtype=torch.float64)
    centred = real - real.mean()
    slope = (centred * drawn).sum() / centred.square().sum()
    return {"slope": slope.item(), "mean_difference": (drawn - real).abs().mean().item()}
