"""The files of Fashion-MNIST: read as distributed, and refused by name where they are damaged."""

import gzip

import numpy as np
import pytest
import torch

from engine.training.data import fashion_mnist, read_idx


def write_idx(path, array, magic=b"\x00\x00\x08"):
    header = magic + bytes([array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(6, dtype=np.uint8))
    images, labels = fashion_mnist(tmp_path, "test")
    assert images.shape == (6, 1, 32, 32)
    assert labels.tolist() == list(range(6))
    assert torch.equal(((images[:, 0, 2:-2, 2:-2] + 1) * 127.5).round().to(torch.uint8), torch.tensor(pixels))
    assert (images[:, :, 0] == -1).all()
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist(tmp_path, "train")
    with pytest.raises(ValueError, match="split is 'dev'"):
        fashion_mnist(tmp_path, "dev")
    write_idx(tmp_path / "bad.gz", pixels, magic=b"\x00\x00\x0d")
    with pytest.raises(ValueError, match="expected an idx file"):
        read_idx(tmp_path / "bad.gz")


def test_damaged_idx_files_are_refused_by_name(tmp_path):
    path = tmp_path / "images.gz"
    write_idx(path, np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8))
    whole = path.read_bytes()
    changed = [whole[: len(whole) // 2], whole[:9], b"", b"\x00\x00\x08\x03", whole[:-8] + bytes(8)]
    changed += [whole[:20] + b"\xff" * 20 + whole[40:]]
    for data in changed:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"images.gz "):
            read_idx(path)
    for raw in (b"", b"\x00\x00\x08", b"\x00\x00\x08\x03\x00\x00", b"\x00\x00\x08\x03" + b"\xff" * 12 + bytes(5)):
        path.write_bytes(gzip.compress(raw))
        with pytest.raises(ValueError, match=r"images.gz (holds|starts)"):
            read_idx(path)
