"""Where a large job's images go: one record a format, so that a new one is an entry here."""

from pathlib import Path

from ..allowed import integer
from .archive import Archive
from .base import Images, Output
from .kinds import NPZ, TAR, ZIP
from .png_folder import PngFolder

_ARCHIVES = {kind.name: kind for kind in (ZIP, TAR, NPZ)}
FORMATS = ("png", *_ARCHIVES)
SHARD = 1000  # images, unless a job says otherwise

__all__ = ["FORMATS", "SHARD", "Images", "Output", "open_output"]


def open_output(
    format: str, folder: Path, images: Images, batch_size: int, *, subdirs: bool = False, shard: int | None = None
) -> Output:
    """Raises ValueError naming the argument, for a format or an option that does not fit; writes nothing."""
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
    if shard is not None and not (format in _ARCHIVES and _ARCHIVES[format].sharded):
        raise ValueError(f"shard is {shard!r} and format is {format!r}; allowed: None, or format 'tar'")
    if subdirs and format != "png":
        raise ValueError(f"subdirs is {subdirs!r} and format is {format!r}; allowed: False, or format 'png'")
    shard = SHARD if shard is None else integer("shard", shard, 1)
    if format != "npz" and (len(images.shape) != 3 or images.shape[0] not in (1, 3)):
        raise ValueError(f"format is {format!r} and images are {list(images.shape)}; allowed: [1 or 3, H, W], or npz")
    if format == "png":
        return PngFolder(folder, images, batch_size, subdirs)
    return Archive(folder, images, batch_size, _ARCHIVES[format], shard)
