"""What the ideal denoiser returns at each noise level: the EDM paper's Figure 1."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import to_uint8
from ..networks.ideal import IdealNetwork
from ..training.data import FASHION_MNIST_CLASSES, fashion_mnist
from .measurements import Measurements
from .plotting import new_figure, style
from .section import Budget, Drawn, Finding, Point, Section, not_measured

SIGMAS = (0.0, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0)  # the paper's
CLASSES = (0, 7, 8)
_ROWS = ("noisy image", "ideal denoiser", "network")


def points(budget: Budget) -> Iterator[Point]:
    """One a class, whose training images are the ideal denoiser's data, as the network is told the class."""
    for label in CLASSES:
        yield Point({"label": label}, lambda label=label: compare(budget, label))  # type: ignore[misc]


def compare(budget: Budget, label: int) -> dict[str, Any]:
    """The first training image of a class with noise, its ideal denoising and the network's, and their distances.

    rows: strips of images as base64 PNGs. RMS distances over pixels, by sigma: of the ideal output from the image and
    from the class's mean, of the network's from the ideal.
    """
    images, labels = fashion_mnist()
    data = images[labels == label].double()
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    noise = torch.randn(data[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(label))
    x = data[0] + sigmas[:, None, None, None] * noise
    # At sigma = 0 both limits are the image itself, which a softmax of 0 / 0 does not say.
    ideal, network = x.clone(), x.clone()
    ideal[1:] = torch.cat(
        [IdealNetwork(data)(one[None], sigma[None]) for one, sigma in zip(x[1:], sigmas[1:], strict=True)]
    )
    given = torch.nn.functional.one_hot(torch.tensor([label]), len(FASHION_MNIST_CLASSES)).float()
    with torch.no_grad():
        network[1:] = budget.denoiser(x[1:], sigmas[1:], given.expand(len(x) - 1, -1)).double()
    distances = {
        "from_image": ideal - data[0],
        "from_mean": ideal - data.mean(0),
        "network_from_ideal": network - ideal,
    }
    strips = zip(_ROWS, (x / (1 + sigmas.square()).sqrt()[:, None, None, None], ideal, network), strict=True)
    return {
        "sigma": list(SIGMAS),
        **{name: [float(f"{rms:.6g}") for rms in _rms(values)] for name, values in distances.items()},
        "rows": {name: _png(strip) for name, strip in strips},
    }


def _rms(images: Tensor) -> list[float]:
    values: list[float] = images.flatten(1).square().mean(1).sqrt().tolist()
    return values


def _png(strip: Tensor) -> str:
    pixels = to_uint8(strip.float()).cpu().numpy()[:, 0]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(pixels), axis=1)).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def draw(measurements: Measurements) -> Drawn:
    finding = _finding(measurements)
    if not measurements.points:
        return Drawn((finding,))
    figure = new_figure(11, 2.6 * len(measurements.points) + 4)
    *strips, below = figure.subplots(
        len(measurements.points) + 1, 1, height_ratios=[*[2.4] * len(measurements.points), 3.4]
    )
    for axes, point in zip(strips, measurements.points, strict=True):
        rows = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in point["rows"].values()]
        side = rows[0].shape[0]
        axes.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=255)
        axes.set_yticks([side * (row + 0.5) for row in range(len(rows))], list(point["rows"]))
        axes.set_xticks([side * (column + 0.5) for column in range(len(SIGMAS))], [f"{s:g}" for s in point["sigma"]])
        axes.set_xlabel(f"sigma; {FASHION_MNIST_CLASSES[point['label']]}")
    for index, point in enumerate(measurements.points):
        name = FASHION_MNIST_CLASSES[point["label"]]
        below.plot(point["sigma"][1:], point["from_image"][1:], label=f"{name}: ideal from the image", **style(index))
        below.plot(
            point["sigma"][1:],
            point["from_mean"][1:],
            linestyle="--",
            label=f"{name}: ideal from the class's mean",
            **style(index),
        )
        below.plot(
            point["sigma"][1:],
            point["network_from_ideal"][1:],
            linestyle=":",
            label=f"{name}: network from ideal",
            **style(index),
        )
    below.set(xscale="log", xlabel="sigma", ylabel="RMS distance over pixels\n(images span -1 to 1)")
    below.grid(alpha=0.3)
    figure.legend(fontsize=8, ncols=len(measurements.points), loc="outside upper center")
    shown = (
        "strips: an image with noise (scaled to be seen), the ideal denoiser's output, the network's; below: distances"
    )
    return Drawn((finding,), (("ideal-denoiser", shown, figure),))


def _finding(measurements: Measurements) -> Finding:
    claim = "the ideal denoiser returns the image itself at low noise and goes to the mean of the data at high noise"
    rule = (
        f"Confirmed: in every class its output is nearer to the image than to the class's mean at sigma {SIGMAS[1]:g}, "
        f"and nearer to the mean at sigma {SIGMAS[-1]:g}; not confirmed: it is not"
    )
    if not measurements.points:
        return not_measured(claim, rule, "nothing is measured yet")
    holds, told = True, []
    for point in measurements.points:
        image, mean, apart = (point[name] for name in ("from_image", "from_mean", "network_from_ideal"))
        holds = holds and image[1] < mean[1] and mean[-1] < image[-1]
        worst = apart.index(max(apart))
        told.append(
            f"{FASHION_MNIST_CLASSES[point['label']]}: RMS {image[1]:.3f} from the image and {mean[1]:.3f} from the "
            f"mean, then {image[-1]:.3f} and {mean[-1]:.3f}; the network is farthest from the ideal, "
            f"{apart[worst]:.3f}, at sigma {SIGMAS[worst]:g}"
        )
    return Finding(claim, rule, "confirmed" if holds else "not confirmed", ". ".join(told))


SECTION = Section(
    "ideal-denoiser",
    "The ideal denoiser by noise level",
    "Karras et al. 2022, Figure 1",
    points,
    draw,
    ("The ideal denoiser's data are all training images of the class, which the network is told.",),
)
