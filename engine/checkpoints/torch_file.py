"""Files of torch.save, both formats, read by the restricted machine: alone where they lie inside pickles, and before
`torch.load(weights_only=True)`, which knows more names and lets a file ask for any amount of memory (a storage's size,
FloatTensor(10**12)); here a storage is its own bytes.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

from .known import tensor_names
from .restricted import Known, read_pickle, shown
from .storage import STORAGE_CLASSES, Budget, Storage, count

ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # _MAGIC, pickled
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, OSError, RuntimeError, struct.error)
_Read = Callable[[int, int], bytes]


def read_torch(data: bytes) -> Any:
    """What was saved, tensors as `StoredTensor`s; nothing in it is executed. Raises ValueError for anything else."""
    return _read_zip(data) if data.startswith(ZIP) else _read_legacy(data)


class _Storages:
    """The storages of one file by key; the same persistent id names the same storage."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def find(self, identifier: object) -> Storage:
        """Persistent ids are ("storage", class, key, location, numel), and in the old format (or None) a view."""
        fields = identifier if isinstance(identifier, tuple) else ()
        if len(fields) not in (5, 6) or fields[0] != "storage" or not isinstance(fields[1], Known):
            raise ValueError("it holds a persistent id that is not a storage's")
        if len(fields) == 6 and fields[5] is not None:
            raise ValueError("it holds views of storages, as torch before 0.4 wrote them; not supported")
        _, kind, key, _, numel = fields[:5]
        if kind.name not in STORAGE_CLASSES or not isinstance(key, str):
            raise ValueError(f"it holds a storage of class '{shown(kind.name)}'")
        described = Storage(STORAGE_CLASSES[kind.name], count(numel, "a storage's size"))
        storage = self.by_key.setdefault(key, described)
        if (storage.dtype, storage.numel) != (described.dtype, described.numel):
            raise ValueError(f"it describes the storage '{shown(key)}' in two ways")
        return storage


def _read_legacy(data: bytes) -> Any:
    """Five pickles (magic, protocol, system, object, keys), then each storage: its element count and its bytes."""
    stream, storages, known = io.BytesIO(data), _Storages(), tensor_names(len(data))
    magic, protocol, system = (read_pickle(stream, known) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("it is not a file of torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was not written on a little-endian machine")
    saved = read_pickle(stream, known, storages.find)
    keys = read_pickle(stream, known)
    known_keys = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not known_keys or sorted(keys) != sorted(storages.by_key):
        raise ValueError("its list of storages is not that of its tensors")
    for key in keys:
        storage = storages.by_key[key]
        numel, start = int.from_bytes(stream.read(8), "little"), stream.tell()
        if numel != storage.numel or start + storage.nbytes > len(data):
            raise ValueError(f"a storage of {storage.numel} elements has {numel}, or ends after the file")
        storage.read = _slice(data, start, start + storage.nbytes)
        stream.seek(storage.nbytes, io.SEEK_CUR)
    return saved


def _slice(data: bytes, begin: int, end: int) -> _Read:
    return lambda start, size: data[begin + start : min(begin + start + size, end)]


def _read_zip(data: bytes) -> Any:
    """Records NAME/data.pkl, NAME/byteorder and NAME/data/KEY, none of them compressed."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it has compressed records, which torch.save does not write")
        Budget(len(data)).spend(sum(info.file_size for info in archive.infolist()), "its records")
        pickles = [name for name in sizes if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip file without one NAME/data.pkl: not a file of torch.save")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in sizes and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was not written on a little-endian machine")
        storages, pickled = _Storages(), io.BytesIO(archive.read(f"{root}data.pkl"))
        saved = read_pickle(pickled, tensor_names(len(data)), storages.find)
        for key, storage in storages.by_key.items():
            if sizes.get(f"{root}data/{key}") != storage.nbytes:
                raise ValueError(f"the storage '{shown(key)}' is not there in its {storage.nbytes} bytes")
            storage.read = _record(archive, f"{root}data/{key}")
    except _BROKEN_ZIP as error:
        raise ValueError(f"it is a broken zip file: {error}") from None
    return saved


def _record(archive: zipfile.ZipFile, name: str) -> _Read:
    @cache  # a record is read and its checksum taken once, however many tensors view it
    def record() -> bytes:
        try:
            return archive.read(name)
        except _BROKEN_ZIP as error:
            raise ValueError(f"it is a broken zip file: {error}") from None

    return lambda start, size: record()[start : start + size]
