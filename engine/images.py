"""Images out of tensors: bytes, PNG files, labelled grids."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .allowed import integer, is_integer, require
from .files import atomic_path, write_bytes

_MODES = ("1", "L", "P", "RGB")  # Pillow's, of which every pixel is 8 bits of gray or of each color, and no more


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0..255: clamp(127.5 x + 128) truncated, as the published code does. Any shape, any floating dtype;
    uint8 comes back as it is. Raises ValueError for what is neither."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images is a {type(images).__name__}; allowed: a floating tensor in [-1, 1], or uint8")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images is {images.dtype}; allowed: a floating dtype, in [-1, 1], or torch.uint8")
    # Half precision has too few bits for 255 levels and a fraction: bfloat16 would be off by one in 40% of its values.
    wide = images if images.dtype == torch.float64 else images.float()
    return (wide * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def save_png(image: Tensor, path: Path | str) -> None:
    """One image [C, H, W], C 1 or 3, uint8 or floating in [-1, 1]; the file is written atomically.

    Raises ValueError for another shape or dtype, and for a name that does not end in .png.
    """
    _require_png(path)
    write_bytes(Path(path), encode_png(image))


def encode_png(image: Tensor) -> bytes:
    """What `save_png` writes; the same image is the same bytes."""
    if not isinstance(image, Tensor):
        raise ValueError(f"image is a {type(image).__name__}; allowed: a tensor [1 or 3, H, W]")
    if image.dim() != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"image has shape {list(image.shape)}; allowed: [1 or 3, H, W]")
    buffer = io.BytesIO()
    _pillow(image).save(buffer, format="png")
    return buffer.getvalue()


def load_pngs(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, list[str]]:
    """A PNG, or all of a folder (`png_files`): float32 [N, *shape] in [-1, 1], and the names.

    shape: (1 or 3, H, W). Raises ValueError for a size other than that, and for a folder without any.
    """
    paths = png_files(path)
    pixels = torch.stack([load_png(each, shape) for each in paths])
    return (pixels.to(torch.float32) - 127.5) / 127.5, [each.name for each in paths]


def load_png(path: Path, shape: tuple[int, ...]) -> Tensor:
    """One PNG as uint8 of ``shape``, (1 or 3, H, W). Raises ValueError for another size, and for a file that holds more
    than 8-bit gray or color: 16 bits would be clipped, transparency lost."""
    with Image.open(path) as opened:
        if opened.mode not in _MODES or opened.has_transparency_data:
            what = f"mode {opened.mode}{' with transparency' if opened.has_transparency_data else ''}"
            raise ValueError(f"{path} is {what}; allowed: {', '.join(_MODES)}, without transparency")
        pixels = np.asarray(opened.convert("L" if shape[0] == 1 else "RGB"))
    image = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    if tuple(image.shape) != tuple(shape):
        raise ValueError(f"{path} is {list(image.shape)}; allowed: {list(shape)}")
    return image


def png_files(path: Path) -> list[Path]:
    """A PNG, or all of a folder and its sub-folders in the order of their names, numbers in them by value.

    So files named by seeds are in the order of the seeds, whatever their number of digits. The grid.png that
    `edm-engine sample --grid` puts beside its images is left out. Raises ValueError for a folder without any.
    """
    found = [p for p in path.rglob("*.png") if p.name != "grid.png"] if path.is_dir() else [path]
    paths = sorted(found, key=_by_value)
    if not paths:
        raise ValueError(f"{path} holds no .png files")
    return paths


def _by_value(path: Path) -> tuple[list[list[str | int]], Path]:
    """Text and numbers take turns in each part's list, so that like is compared with like."""
    parts = [re.split("([0-9]+)", part) for part in path.parts]
    return [[int(piece) if i % 2 else piece for i, piece in enumerate(pieces)] for pieces in parts], path


def png_size(path: Path) -> tuple[int, int]:
    """(H, W) of a PNG."""
    with Image.open(path) as opened:
        return opened.height, opened.width


def save_grid(
    images: Tensor,
    path: Path | str,
    *,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    scale: int = 1,
) -> None:
    """Images [N, C, H, W] (uint8, or floating in [-1, 1]) as one PNG, row by row.

    columns: None means as square as possible. labels: one text under each image. scale: integer enlargement,
    nearest neighbour. Raises ValueError for images, a label count, columns or a scale that do not fit.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images is a {type(images).__name__}; allowed: a tensor [N, 1 or 3, H, W]")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images has shape {list(images.shape)}; allowed: [N, 1 or 3, H, W], N from 1")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"labels has {len(labels)} entries; allowed: one an image ({len(images)})")
    require("labels", labels, labels is None or all(isinstance(each, str) for each in labels), "texts, or None")
    _require_png(path)
    scale = integer("scale", scale, 1)
    ok = columns is None or is_integer(columns, 1)
    require("columns", columns, ok, "an integer from 1, or None")
    columns = min(columns or int(np.ceil(np.sqrt(len(images)))), len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[2] * scale, images.shape[3] * scale
    gap, text = 2, 14 if labels else 0
    grid = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap + text) + gap), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=11)
    for index, image in enumerate(images):
        left = gap + index % columns * (width + gap)
        top = gap + index // columns * (height + gap + text)
        grid.paste(_pillow(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if labels:
            draw.text((left + width // 2, top + height), labels[index], "black", font, anchor="ma")
    with atomic_path(Path(path)) as temporary:
        grid.save(temporary, format="png")


def _require_png(path: Path | str) -> None:
    require("path", str(path), Path(path).suffix.lower() == ".png", "a file of this kind, .png")


def _pillow(image: Tensor) -> Image.Image:
    pixels = to_uint8(image).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
