"""Archives of images: batches are parts on disk until the archive is made of them."""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from ..files import atomic_path
from .base import PARTS, Images, Output, digest, write_sums
from .kinds import Kind


class Archive(Output):
    """One archive, or shards of ``shard`` images. A batch's part is a zip file, whose checksums tell a torn one.

    The disk holds every image twice while the archive is made.
    """

    def __init__(self, folder: Path, images: Images, batch_size: int, kind: Kind, shard: int) -> None:
        super().__init__(folder, images, batch_size)
        self.kind, count = kind, len(images.numbers)
        size = shard if kind.sharded else count
        self.files = {kind.file(i): range(i * size, min((i + 1) * size, count)) for i in range(-(-count // size))}
        self._standing: dict[str, bool] = {}

    def names(self) -> Iterable[str]:
        return self.files

    def complete(self, batch: int) -> bool:
        return self._intact(batch) or all(self._stands(name) for name in self._files_of(batch))

    def write(self, batch: int, images: Tensor) -> None:
        with atomic_path(self._part(batch, "zip")) as temporary, zipfile.ZipFile(temporary, "w") as part:
            for position, image in zip(self._positions(batch), images, strict=True):
                part.writestr(str(position), self.kind.encode(image))

    def finish(self) -> None:
        self._end({name: self._sums[name] if self._stands(name) else self._make(name) for name in self.files})

    def _make(self, name: str) -> str:
        """One file, of parts; its SHA-256."""
        positions = self.files[name]
        with atomic_path(self.folder / name) as temporary:
            self.kind.write(temporary, self.images, positions, self._entries(positions))
            made = digest(temporary)
            write_sums(self.folder / PARTS / f"{name}.sha256", {name: made})
        return made

    def _files_of(self, batch: int) -> list[str]:
        own = self._positions(batch)
        return [name for name, held in self.files.items() if held.start < own.stop and own.start < held.stop]

    def _stands(self, name: str) -> bool:
        """Whether a file of a job that had ended is still what it was."""
        if name not in self._standing:
            self._standing[name] = self._matches(name, self._sums.get(name))
        return self._standing[name]

    def _intact(self, batch: int) -> bool:
        path = self._part(batch, "zip")
        if not path.exists():
            return False
        try:
            with zipfile.ZipFile(path) as part:
                whole = part.namelist() == list(map(str, self._positions(batch))) and part.testzip() is None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError):
            whole = False
        if not whole:
            self.torn.append(str(path.relative_to(self.folder)))
        return whole

    def _entries(self, positions: range) -> Iterator[bytes]:
        """The encoded images of some positions, in order, one in memory at a time."""
        for batch in range(positions.start // self.batch_size, -(-positions.stop // self.batch_size)):
            own = self._positions(batch)
            path = self._part(batch, "zip")
            try:
                with zipfile.ZipFile(path) as part:
                    for position in range(max(own.start, positions.start), min(own.stop, positions.stop)):
                        yield part.read(str(position))
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path} was damaged after it was written ({error}); resume draws it anew") from None
