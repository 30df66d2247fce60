"""A folder of PNG files named by seed."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ..files import write_bytes
from ..images import encode_png
from .base import Images, Output, read_sums, write_sums


class PngFolder(Output):
    """Every image is a file from the moment its batch is drawn; a batch's part is the checksums of its files, which is
    there before them.

    subdirs: a sub-folder for every thousand numbers.
    """

    def __init__(self, folder: Path, images: Images, batch_size: int, subdirs: bool) -> None:
        super().__init__(folder, images, batch_size)
        self.subdirs = subdirs

    def name(self, position: int) -> str:
        """The path of an image inside the folder."""
        return self.images.name(position, self.subdirs)

    def names(self) -> Iterator[str]:
        return map(self.name, range(len(self.images.numbers)))

    def complete(self, batch: int) -> bool:
        sums = self._batch_sums(batch)
        names = [self.name(position) for position in self._positions(batch)]
        matches = [self._matches(name, sums.get(name)) for name in names]  # of every one, to know what is torn
        return all(matches)

    def write(self, batch: int, images: Tensor) -> None:
        names = [self.name(position) for position in self._positions(batch)]
        with ThreadPoolExecutor(2) as pool:
            encoded = list(pool.map(encode_png, images))
            digests = pool.map(lambda data: hashlib.sha256(data).hexdigest(), encoded)
            write_sums(self._part(batch, "sha256"), dict(zip(names, digests, strict=True)))
            list(pool.map(lambda name, data: write_bytes(self.folder / name, data), names, encoded))

    def finish(self) -> None:
        self._end({name: value for batch in range(self.batches) for name, value in self._batch_sums(batch).items()})

    def _batch_sums(self, batch: int) -> dict[str, str]:
        part = self._part(batch, "sha256")
        if part.exists():
            return read_sums(part)
        names = (self.name(position) for position in self._positions(batch))
        return {name: self._sums[name] for name in names if name in self._sums}

    def _folders(self) -> set[Path]:
        return super()._folders() | {(self.folder / name).parent for name in self.names()}
