"""``edm-engine invert``: images to the latents that draw them."""

from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file

from .. import checkpoints
from ..api import invert
from ..files import atomic_path
from ..images import load_pngs
from .sampler_options import sampler_options, take_sampler
from .types import DTYPES, IntRange, OutFile


@click.command("invert")
@click.option("--model", required=True, help="A shipped name (fashion-mnist) or a checkpoint.")
@click.option(
    "--image", type=click.Path(path_type=Path, exists=True), required=True, help="A PNG, or a folder of them."
)
@click.option("--class", "classes", type=IntRange(), help="Class or classes, dealt to the images in turn.")
@sampler_options
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the network.")
@click.option("--batch", type=int, default=64, show_default=True, help="Images evaluated together.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=OutFile(), default="latents.safetensors", show_default=True)
def invert_command(
    model: str, image: Path, classes: list[int] | None, dtype: str, batch: int, device: str, out: Path, **options: Any
) -> None:
    """Write the latents of images; `edm-engine sample --latents` draws the images again, given the same --class and
    sampler."""
    denoiser = checkpoints.load(model)
    images, names = load_pngs(image, denoiser.img_shape)
    labels = [classes[i % len(classes)] for i in range(len(images))] if classes else None
    latents = invert(
        denoiser, images, class_labels=labels, sampler=take_sampler(options), progress=True, batch_size=batch,
        dtype=getattr(torch, dtype), device=device, output_dtype=torch.float64,
    )  # fmt: skip
    with atomic_path(out) as temporary:
        save_file({"latents": latents.cpu().contiguous()}, temporary, {"images": " ".join(names)})
    click.echo(f"latents of {len(images)} images, standard deviation {latents.std():.4f}, written to {out}")
