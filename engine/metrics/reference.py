"""What generated images are compared with: a data set known by name, a folder of PNGs, or statistics in a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..images import load_pngs, png_files, png_size
from ..training.data import FASHION_MNIST, fashion_mnist
from .features import FeatureExtractor
from .statistics import Statistics

DATA_SETS = {"fashion-mnist-train": "train", "fashion-mnist-test": "test"}
_BATCH = 500


def reference_statistics(name: str, extractor: FeatureExtractor) -> Statistics:
    """Of one of `DATA_SETS`, of a folder of PNGs, or from a file that `edm-engine statistics` wrote.

    Those of the data sets ship for the features of the classifier that ships; what is not in a file is computed from
    the images. Raises ValueError for statistics of another network's features, and what `real_images` does.
    """
    path = Path(__file__).parent / f"{name}.safetensors" if name in DATA_SETS else Path(name)
    if path.is_file():
        statistics = Statistics.load(path)
        if statistics.extractor == extractor.name:
            return statistics
        if name not in DATA_SETS:
            raise ValueError(f"{name} holds statistics of {statistics.extractor!r}; needed: of {extractor.name!r}")
    return measure(real_images(name, extractor.img_shape), extractor)


def real_images(name: str, img_shape: tuple[int, ...] | None = None) -> Iterator[Tensor]:
    """The images of one of `DATA_SETS` or of a folder of PNGs: batches [B, C, H, W] float32 in [-1, 1].

    img_shape: what each must be; None for 3 channels and the size of the first. Raises FileNotFoundError saying what to
    install, or ValueError, both at once: before the first batch is asked for.
    """
    if name in DATA_SETS:
        if not FASHION_MNIST.is_dir():
            raise FileNotFoundError(
                f"the images of {name} are not here: install Debian's package dataset-fashion-mnist, or give another "
                "reference, a folder of PNGs"
            )
        return iter(fashion_mnist(split=DATA_SETS[name])[0].split(_BATCH))
    if not Path(name).is_dir():
        raise ValueError(f"{name!r} has no images to measure; allowed: {', '.join(DATA_SETS)}, or a folder of PNGs")
    files = png_files(Path(name))
    shape = img_shape or (3, *png_size(files[0]))
    starts = range(0, len(files), _BATCH)
    return (torch.cat([load_pngs(file, shape)[0] for file in files[at : at + _BATCH]]) for at in starts)


def measure(batches: Iterable[Tensor], extractor: FeatureExtractor) -> Statistics:
    """Statistics of the features of images, at the memory of one batch."""
    total = Statistics.empty(extractor.name, extractor.dim)
    for images in batches:
        total += Statistics.of(extractor.name, extractor(images)[0])
    return total


def first_features(batches: Iterable[Tensor], extractor: FeatureExtractor, count: int) -> Tensor:
    """Features of the first ``count`` images, float32 [count or fewer, dim]."""
    found: list[Tensor] = []
    for images in batches:
        found.append(extractor(images[: count - sum(map(len, found))])[0])
        if sum(map(len, found)) == count:
            break
    return torch.cat(found)
