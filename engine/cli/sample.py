"""``edm-engine sample``: seeds to PNG files."""

import json
import math
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from .. import checkpoints
from ..api import Engine
from ..files import atomic_path
from ..images import save_grid, save_png, to_uint8
from ..job import NOISES
from .sampler_options import sampler_options, take_sampler
from .types import DTYPES, IntRange


@click.command()
@click.option("--model", required=True, help="A shipped name (fashion-mnist) or a safetensors file.")
@click.option("--seeds", type=IntRange(), default="0-63", show_default=True, help="One image a seed, e.g. 0-63 or 1,5.")
@click.option("--class", "classes", type=IntRange(), help="Class or classes, dealt to the seeds in turn, e.g. 0-9.")
@sampler_options
@click.option("--noise", type=click.Choice(NOISES), default="philox", show_default=True, help="Random streams.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the network.")
@click.option("--batch", type=int, default=64, show_default=True, help="Images evaluated together.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True)
@click.option("--subdirs", is_flag=True, help="A sub-folder for every thousand seeds.")
@click.option("--grid", is_flag=True, help="Also write grid.png, labelled with classes.")
def sample(
    model: str,
    seeds: list[int],
    classes: list[int] | None,
    noise: str,
    dtype: str,
    batch: int,
    backend: str,
    device: str,
    out: Path,
    subdirs: bool,
    grid: bool,
    **options: Any,
) -> None:
    """Draw one image a seed and write PNG files named by seed, with the settings beside them."""
    given = click.get_current_context().params
    settings = {name: value for name, value in given.items() if value is not None}
    sampler = take_sampler(options)
    engine = Engine(
        checkpoints.load(model),
        sampler=sampler,
        dtype=getattr(torch, dtype),
        backend=backend,
        device=device,
        batch_size=batch,
    )
    labels = [classes[i % len(classes)] for i in range(len(seeds))] if classes else None
    batches = engine.stream(
        seeds=seeds, class_labels=labels, noise=noise, progress=True
    )  # refuses bad input before any file
    pixels = []
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        for positions, images in batches:
            drawn = to_uint8(images).cpu()
            list(pool.map(save_png, drawn, [_path(out, seeds[i], subdirs) for i in positions]))
            if grid:
                pixels.append(drawn)
    seconds = time.perf_counter() - started
    if grid:
        names = engine.denoiser.class_names
        texts = None if labels is None else [names[c] if names else str(c) for c in labels]
        columns = len(classes) if classes and len(classes) > 1 else None
        save_grid(torch.cat(pixels), out / "grid.png", columns=columns, labels=texts, scale=2)
    _write_settings(out / "settings.json", settings | {"images": len(seeds), "seconds": seconds})
    click.echo(f"{len(seeds)} images in {seconds:.1f} s, {len(seeds) / seconds:.2f} images/s, written to {out}")


def _path(out: Path, seed: int, subdirs: bool) -> Path:
    folder = out / f"{seed - seed % 1000:06d}" if subdirs else out
    return folder / f"{seed:06d}.png"


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    """What it takes to draw the same images again, as strict JSON: an infinite S_tmax is the string "inf"."""
    record = settings | {"engine": version("edm-engine"), "torch": torch.__version__, "processor": platform.machine()}
    plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, default=str, allow_nan=False) + "\n")
