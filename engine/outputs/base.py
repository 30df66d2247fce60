"""What every output does: batches that are whole or absent, and a list of checksums at the end."""

import hashlib
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..files import remove_temporaries, write_bytes

PARTS = ".parts"  # what a job that goes on knows of its batches; gone when it has ended
SUMS = "checksums.sha256"  # what `sha256sum --check` reads
GRID = "grid.png"  # an overview that a job's owner may have made of its images
WRITTEN = re.compile(r"([0-9]{6,}/)?[0-9]{6,}\.png|images(-[0-9]{6,})?\.(zip|tar|npz)")  # what a job's files are called
Label = int | list[float]


@dataclass(frozen=True)
class Images:
    """What a job draws: the number (a seed) that names each image, labels if there are classes, shape (C, H, W)."""

    numbers: Sequence[int]
    labels: Sequence[Label] | None
    shape: tuple[int, ...]

    def name(self, position: int, subdirs: bool = True) -> str:
        """000123.png, or with a sub-folder for every thousand numbers 000000/000123.png."""
        number = self.numbers[position]
        return f"{number - number % 1000:06d}/{number:06d}.png" if subdirs else f"{number:06d}.png"


class Output(ABC):
    """Images in a folder, written batch by batch by any number of processes and in any order.

    A batch's bytes depend on its images alone, so to write it again changes nothing. A file's checksum is on a list
    before the file is there, so that a list names all that a job has written, wherever it was interrupted. torn: the
    names of files that were there and were not what they should be, as `complete` finds them. removed: how many files
    of an earlier job `begin` has removed.
    """

    def __init__(self, folder: Path, images: Images, batch_size: int) -> None:
        self.folder, self.images, self.batch_size = folder, images, batch_size
        self.batches = -(-len(images.numbers) // batch_size)
        self.torn: list[str] = []
        self.removed = 0

    def begin(self, resume: bool) -> None:
        """By one process, before any other call: what an earlier job wrote is removed, unless this one goes on with it.

        The lists go last: until then the earlier job can be resumed. Raises ValueError, before any of that, if a file
        that no job has written, or that was changed since, stands where this one's go.
        """
        folders = self._folders()
        if not resume:
            written = self._written()
            self._require_free(folders, written)
            self._remove(written)
            self._remove_parts()
            (self.folder / SUMS).unlink(missing_ok=True)
        for folder in folders:
            remove_temporaries(folder)

    def lists(self) -> list[str]:
        """The names, of those that a job keeps its lists under, which are there."""
        return [name for name in (SUMS, PARTS) if (self.folder / name).exists()]

    @abstractmethod
    def names(self) -> Iterable[str]:
        """What the job's files are called, inside the folder."""

    @abstractmethod
    def complete(self, batch: int) -> bool:
        """Whether a batch is there, every byte of it checked."""

    @abstractmethod
    def write(self, batch: int, images: Tensor) -> None:
        """A batch, uint8 [B, C, H, W]; when this returns it is not lost with the process."""

    @abstractmethod
    def finish(self) -> None:
        """By one process, when every batch is written or complete; safe to do again after an interruption."""

    def _folders(self) -> set[Path]:
        return {self.folder, self.folder / PARTS}

    def _positions(self, batch: int) -> range:
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.images.numbers)))

    def _part(self, batch: int, suffix: str) -> Path:
        return self.folder / PARTS / f"{batch:06d}.{suffix}"

    @cached_property
    def _sums(self) -> dict[str, str]:
        """Of a job that had ended: file name to SHA-256."""
        return read_sums(self.folder / SUMS)

    def _matches(self, name: str, expected: str | None) -> bool:
        """Whether a file is what a list says; one that is there and is not is noted as torn."""
        path = self.folder / name
        if expected is not None and path.exists():
            if digest(path) == expected:
                return True
            self.torn.append(name)
        return False

    def _end(self, sums: dict[str, str]) -> None:
        """The list first: as long as the parts are there, whatever stands beside them can be made again."""
        write_sums(self.folder / SUMS, sums)
        self._remove_parts()

    def _written(self) -> set[Path]:
        """The files that an earlier job's lists name, if they are still what it wrote. A list may say anything."""
        named = ((self.folder / name, expected) for name, expected in self._listed() if WRITTEN.fullmatch(name))
        return {path for path, expected in named if _lies_in(self.folder, path) and digest(path) == expected}

    def _require_free(self, folders: set[Path], written: set[Path]) -> None:
        """Folders are listed rather than asked for each file, which for a million of them takes a network's while."""
        others = {path for folder in folders if folder.is_dir() for path in folder.iterdir()} - written
        in_the_way = [folder for folder in folders if folder.exists() and not folder.is_dir()]
        if others:
            in_the_way += [path for path in (self.folder / name for name in self.names()) if path in others]
        if in_the_way:
            name = min(in_the_way).relative_to(self.folder)
            what = f"whose {name} is not what a job wrote; allowed: another, or without it"
            raise ValueError(f"folder is {self.folder}, {what}")

    def _remove(self, written: set[Path]) -> None:
        for path in written:
            path.unlink()
        self.removed = len(written)
        if written:
            (self.folder / GRID).unlink(missing_ok=True)  # of the images that are gone
        for folder in {path.parent for path in written} - {self.folder}:
            with suppress(OSError):  # others have files in it
                folder.rmdir()

    def _listed(self) -> Iterator[tuple[str, str]]:
        """Names and SHA-256 of all files that a job in this folder has written, whatever its format."""
        for path in [self.folder / SUMS, *(self.folder / PARTS).glob("*.sha256")]:
            yield from read_sums(path).items()

    def _remove_parts(self) -> None:
        if (self.folder / PARTS).exists():
            shutil.rmtree(self.folder / PARTS)


def _lies_in(folder: Path, path: Path) -> bool:
    """Whether a path is a file, in a folder that no link leads out of."""
    return path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(folder.resolve())


def digest(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(path: Path, sums: dict[str, str]) -> None:
    """In the form of sha256sum."""
    write_bytes(path, "".join(f"{value}  {name}\n" for name, value in sums.items()).encode())


def read_sums(path: Path) -> dict[str, str]:
    """File name to SHA-256; empty if there is no list. A line that is damaged names no file that fits it."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {name: value for value, _, name in (line.partition("  ") for line in lines)}
