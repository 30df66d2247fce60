"""Whether samples are as bright as the data: what training without zero terminal SNR spoils (Lin et al. 2024).

A network trained to see a little of the image at t = T takes the mean of the noise that it starts from for the image's:
its dark classes come out too bright, its bright ones too dark.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import Engine
from ..metrics.intervals import jackknife, means_without
from ..samplers import Sampler

Rows = Sequence[dict[str, Any]]
# Trained alike but for the betas, with zero terminal SNR and without: their names in tables, and their presets.
TRAINED = {"zero snr": "zero-snr", "usual": "usual-snr"}


def brightness(images: Tensor) -> Tensor:
    """The mean of each image [N, C, H, W] in [-1, 1], float64 [N]."""
    return images.double().clamp(-1, 1).flatten(1).mean(1)


def compare(
    trained: str,
    drawing: Engine,
    images: Tensor,
    labels: Tensor,
    *,
    sampler: Sampler,
    per_class: int,
    classes: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """One row a class: the mean brightness of ``per_class`` samples with its 95% interval, and that of real images.

    images [N, C, H, W] in [-1, 1] with labels [N]; seeds count from 0. "without" of a row: the mean without each block
    of samples. Raises ValueError for fewer than 20 a class.
    """
    if per_class < 20:
        raise ValueError(f"per_class is {per_class}; allowed: from 20, for intervals over blocks of samples")
    for label, name in enumerate(classes):
        seeds = range(label * per_class, (label + 1) * per_class)
        drawn = brightness(drawing.sample(seeds=seeds, class_labels=label, sampler=sampler)).cpu()
        mean, without = drawn.mean().item(), means_without(drawn)
        half = jackknife(without)
        yield {
            "trained": trained,
            "class": name,
            "mean_brightness_samples": mean,
            "interval": [mean - half, mean + half],
            "without": without,
            "mean_brightness_data": brightness(images[labels == label]).mean().item(),
        }


def slope(rows: Rows) -> tuple[float, list[float]]:
    """Of the samples' brightness by the data's over the classes of rows of one network: 1 where all is well, below it
    where dark and bright are drawn together. And without each block of samples, of every class at once: no two classes
    share a seed, so that blocks are independent."""
    real = torch.tensor([row["mean_brightness_data"] for row in rows], dtype=torch.float64)
    drawn = torch.tensor([[row["mean_brightness_samples"], *row["without"]] for row in rows], dtype=torch.float64)
    centred = real - real.mean()
    fitted = centred @ drawn / centred.square().sum()
    return fitted[0].item(), fitted[1:].tolist()


def summary(rows: Rows) -> dict[str, Any]:
    """Of rows of one network: the slope with its 95% interval over seeds, and the mean absolute difference between the
    classes' brightness and the data's."""
    fitted, without = slope(rows)
    half = jackknife(without)
    apart = [abs(row["mean_brightness_samples"] - row["mean_brightness_data"]) for row in rows]
    return {"slope": fitted, "interval": [fitted - half, fitted + half], "mean_difference": sum(apart) / len(apart)}
