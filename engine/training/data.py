"""Training data: the four idx files of Fashion-MNIST, read as they are distributed."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Where Debian's package dataset-fashion-mnist puts the files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot",
)  # fmt: skip


def fashion_mnist(folder: Path = FASHION_MNIST, split: str = "train") -> tuple[Tensor, Tensor]:
    """(images [N, 1, 32, 32] float32 in [-1, 1], labels [N] int64): 28x28 pixels padded with black to 32x32.

    split is "train" (60,000 images) or "test" (10,000). Raises FileNotFoundError saying how to get the files.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; allowed: 'train', 'test'")
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(Path(folder) / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(Path(folder) / f"{prefix}-labels-idx1-ubyte.gz")
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded)[:, None].float() / 127.5 - 1, torch.from_numpy(labels).long()


def read_idx(path: Path) -> np.ndarray:
    """One gzipped idx file of unsigned bytes. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; install Debian's package dataset-fashion-mnist, "
            "or give the folder that holds the four gzipped idx files of Fashion-MNIST"
        )
    compressed = path.read_bytes()
    try:
        raw = gzip.decompress(compressed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); the file is damaged") from None
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} starts with {raw[:4]!r}; expected an idx file of unsigned bytes")
    header = 4 + 4 * raw[3] if len(raw) > 3 else 4
    if len(raw) < header:
        raise ValueError(f"{path} holds {len(raw)} bytes for a header of {header}; the file is damaged")
    shape = np.frombuffer(raw[4:header], ">u4").tolist()
    body = np.frombuffer(raw[header:], np.uint8).copy()
    if body.size != math.prod(shape):
        raise ValueError(f"{path} holds {body.size} bytes for shape {shape}; the file is damaged")
    return body.reshape(shape)
