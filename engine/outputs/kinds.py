"""Kinds of archives: how an image is encoded, and how a file is made of many; the same images are the same bytes."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..images import encode_png
from .base import Images

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that zip can say


@dataclass(frozen=True)
class Kind:
    """sharded: many files instead of one. encode: an image uint8 [C, H, W] as bytes. write: a file at a path, from the
    whole job, the positions that this file holds and their encoded images in order."""

    name: str
    sharded: bool
    encode: Callable[[Tensor], bytes]
    write: Callable[[Path, Images, range, Iterator[bytes]], None]

    def file(self, index: int) -> str:
        """The name of file ``index``."""
        return f"images-{index:06d}.{self.name}" if self.sharded else f"images.{self.name}"


def _write_zip(path: Path, images: Images, positions: range, entries: Iterator[bytes]) -> None:
    """Uncompressed, in sub-folders of 1,000, with the dataset.json of the published EDM code."""
    names = [images.name(p) for p in positions]
    labels = None if images.labels is None else [[n, images.labels[p]] for n, p in zip(names, positions, strict=True)]
    with zipfile.ZipFile(path, "w") as file:
        for name, data in zip(names, entries, strict=True):
            file.writestr(_zip_info(name), data)
        file.writestr(_zip_info("dataset.json"), json.dumps({"labels": labels}))


def _write_tar(path: Path, images: Images, positions: range, entries: Iterator[bytes]) -> None:
    """WebDataset: files of one sample share a name; .cls is its class, .json a soft label."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for position, data in zip(positions, entries, strict=True):
            name = f"{images.numbers[position]:06d}"
            _add(file, f"{name}.png", data)
            if images.labels is not None:
                label = images.labels[position]
                _add(file, f"{name}.{'cls' if isinstance(label, int) else 'json'}", json.dumps(label).encode())


def _write_npz(path: Path, images: Images, positions: range, entries: Iterator[bytes]) -> None:
    """images: uint8 [N, H, W, C]; seeds: uint64 [N]; labels: int64 [N], or float64 [N, label_dim] if soft."""
    channels, *size = images.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(positions), *size, channels)}
    arrays = {"seeds": np.array([images.numbers[p] for p in positions], dtype=np.uint64)}
    if images.labels is not None:
        arrays["labels"] = np.array([images.labels[p] for p in positions])
    with zipfile.ZipFile(path, "w") as file:
        with file.open(_zip_info("images.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for data in entries:
                member.write(data)
        for name, array in arrays.items():
            with file.open(_zip_info(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array)


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    return info


def _add(file: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its time is 0, its owner nobody in particular
    info.size = len(data)
    file.addfile(info, io.BytesIO(data))


def _channels_last(image: Tensor) -> bytes:
    return image.movedim(0, -1).contiguous().numpy().tobytes()


ZIP = Kind("zip", sharded=False, encode=encode_png, write=_write_zip)
TAR = Kind("tar", sharded=True, encode=encode_png, write=_write_tar)
NPZ = Kind("npz", sharded=False, encode=_channels_last, write=_write_npz)
