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
from click.core import ParameterSource
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import checkpoints
from ..engine import Engine
from ..files import atomic_path
from ..images import load_pngs, save_grid, save_png, to_uint8
from ..job import NOISES
from .guidance_options import guidance_options, take_guidance
from .sampler_options import sampler_options, take_sampler
from .types import DTYPES, IntRange

_PATH = click.Path(path_type=Path, exists=True)


@click.command()
@click.option("--model", required=True, help="A shipped name (fashion-mnist) or a checkpoint.")
@click.option("--seeds", type=IntRange(), default="0-63", show_default=True, help="One image a seed, e.g. 0-63 or 1,5.")
@click.option("--class", "classes", type=IntRange(), help="Class or classes, dealt to the seeds in turn, e.g. 0-9.")
@sampler_options
@guidance_options
@click.option("--image", type=_PATH, help="A PNG to start from, or a folder with one a seed; sigma_max says how much.")
@click.option("--mask", type=_PATH, help="PNG(s): bright where the image is kept, dark where it is drawn anew.")
@click.option("--latents", type=_PATH, help="What `edm-engine invert` wrote, instead of the seeds' own.")
@click.option("--offset-noise", type=float, default=0.0, show_default=True, help="Of whole channels of the latents.")
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
    image: Path | None,
    mask: Path | None,
    latents: Path | None,
    offset_noise: float,
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
    context = click.get_current_context()
    denoiser = checkpoints.load(model)
    start = None if latents is None else _load_latents(latents)
    if start is not None and context.get_parameter_source("seeds") is ParameterSource.DEFAULT:
        seeds = list(range(len(start)))
    settings = {name: value for name, value in (context.params | {"seeds": seeds}).items() if value is not None}
    guidance = take_guidance(options, denoiser, len(seeds), device)
    engine = Engine(
        denoiser,
        sampler=take_sampler(options),
        guidance=guidance,
        dtype=getattr(torch, dtype),
        backend=backend,
        device=device,
        batch_size=batch,
    )
    labels = [classes[i % len(classes)] for i in range(len(seeds))] if classes else None
    shape = denoiser.img_shape
    batches = engine.stream(  # refuses bad input before any file
        seeds=seeds,
        latents=start,
        class_labels=labels,
        noise=noise,
        image=None if image is None else _one_a_seed(load_pngs(image, shape)[0], len(seeds)),
        mask=None if mask is None else _one_a_seed(load_pngs(mask, (1, *shape[1:]))[0] > 0, len(seeds)),
        offset_noise=offset_noise,
        progress=True,
    )
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


def _one_a_seed(images: torch.Tensor, count: int) -> torch.Tensor:
    """One image stands for all."""
    return images.expand(count, *images.shape[1:]) if len(images) == 1 else images


def _load_latents(path: Path) -> torch.Tensor:
    try:
        return load_file(path)["latents"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a file of latents, as `edm-engine invert` writes: {error}") from None


def _path(out: Path, seed: int, subdirs: bool) -> Path:
    folder = out / f"{seed - seed % 1000:06d}" if subdirs else out
    return folder / f"{seed:06d}.png"


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    """What it takes to draw the same images again, as strict JSON: an infinite S_tmax is the string "inf"."""
    record = settings | {"engine": version("edm-engine"), "torch": torch.__version__, "processor": platform.machine()}
    plain = {name: _strict(value) for name, value in record.items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, default=str, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_strict(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
