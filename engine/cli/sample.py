"""``edm-engine sample``: seeds to images in files."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import torch
from click.core import ParameterSource
from safetensors import SafetensorError
from safetensors.torch import load_file

from .. import checkpoints
from ..dealing import Alone, Ranks, launched, local_rank
from ..drawing import Drawing, Drawn
from ..engine import Engine
from ..graphs import MODES, Mode
from ..images import load_png, load_pngs, save_grid
from ..job import NOISES
from ..outputs.base import GRID, WRITTEN
from ..outputs.png_folder import PngFolder
from ..record import SETTINGS
from .guidance_options import guidance_options, take_guidance
from .large_options import large_options
from .sampler_options import sampler_options, take_sampler
from .types import DTYPES, BatchSize, IntRange

_PATH = click.Path(path_type=Path, exists=True)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option("--model", required=True, help="A shipped name (fashion-mnist) or a checkpoint.")
@click.option("--seeds", type=IntRange(), default="0-63", show_default=True, help="One image a seed, e.g. 0-63 or 1,5.")
@click.option("--class", "classes", type=IntRange(), help="Class or classes, dealt to the seeds in turn, e.g. 0-9.")
@sampler_options
@guidance_options
@click.option("--image", type=_PATH, help="A PNG to start from, or a folder with one a seed; sigma_max says how much.")
@click.option("--mask", type=_PATH, help="PNG(s): bright where the image is kept, dark where it is drawn anew.")
@click.option("--latents", type=_FILE, help="What `edm-engine invert` wrote, instead of the seeds' own.")
@click.option("--offset-noise", type=float, default=0.0, show_default=True, help="Of whole channels of the latents.")
@click.option(
    "--noise",
    type=click.Choice(NOISES),
    default="philox",
    show_default=True,
    help="Random streams; torch and edm2, the published ones, know seeds modulo 2**32.",
)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the network.")
@click.option(
    "--batch", type=BatchSize(), default=64, show_default=True, help="Images evaluated together; auto: all that fit."
)
@click.option("--batch-invariant", is_flag=True, help="Each image has the bits it would have in a batch of its own.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--graph", type=click.Choice(MODES), default="auto", show_default=True, help="CUDA graphs of the sampling loop."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True)
@large_options
@click.option("--grid", is_flag=True, help="Also write grid.png, labelled with classes; it holds all in memory.")
def sample(grid: bool, resume: bool, ray: bool, workers: int | None, **job: Any) -> None:
    """Draw one image a seed and write PNG files named by seed, or archives, with the settings beside them.

    The processes that torchrun starts share the seeds.
    """
    if grid and job["format"] != "png":
        raise click.UsageError(f"--grid needs --format png, not {job['format']}")
    if grid and (job["out"] / GRID).exists() and not (job["out"] / SETTINGS).exists():
        raise click.UsageError(f"--grid would overwrite {job['out'] / GRID}, which no job has written")
    for option in ("image", "mask"):
        if job[option] and _goes_with_the_old(job[option].resolve(), job["out"].resolve()):
            raise click.UsageError(f"--{option} is {job[option]}, which a new job in --out removes; allowed: elsewhere")
    if workers and not ray:
        raise click.UsageError("--workers needs --ray")
    if click.get_current_context().get_parameter_source("seeds") is ParameterSource.DEFAULT and job["latents"]:
        job["seeds"] = list(range(len(_load_latents(job["latents"]))))
    drawn = _draw_on_ray(job, resume, workers) if ray else _draw(job, resume)
    if drawn.removed:
        click.echo(f"{job['out']} held an earlier job, of which {drawn.removed} files were removed", err=True)
    if job["image"] and not job["mask"] and job.get("sigma_max") is None:
        click.echo("--sigma-max says how much noise --image starts with; its default leaves nothing of it", err=True)
    for name in drawn.torn:
        click.echo(f"{job['out'] / name} was torn and is drawn anew", err=True)
    if drawn.last and grid and isinstance(drawn.output, PngFolder):
        _save_grid(drawn.output, job["classes"], checkpoints.load(job["model"]).class_names)
    rate = f"{drawn.drawn} images in {drawn.seconds:.1f} s, {drawn.drawn / drawn.seconds:.2f} images/s"
    click.echo(f"{rate}, written to {job['out']}{', which is complete' if drawn.last else ''}")


def _draw(job: dict[str, Any], resume: bool) -> Drawn:
    """By this process, or its share if it is one of torchrun's."""
    team = Ranks.of_torchrun() if launched() else Alone()
    if launched() and job["device"] == "cuda":
        job["device"] = f"cuda:{local_rank()}"
    return _drawing(**job).run(resume=resume, team=team, progress=team.rank == 0)


def _draw_on_ray(job: dict[str, Any], resume: bool, workers: int | None) -> Drawn:
    from ..ray_data import draw_on_ray

    job["threads"] = job["threads"] or 1  # an actor's, where nothing else is said
    return draw_on_ray(partial(_drawing, **job), resume=resume, workers=workers)


def _drawing(
    *,
    model: str,
    seeds: list[int],
    classes: list[int] | None,
    image: Path | None,
    mask: Path | None,
    latents: Path | None,
    dtype: str,
    batch: int | Literal["auto"],
    batch_invariant: bool,
    backend: str,
    device: str,
    graph: Mode,
    threads: int | None,
    out: Path,
    format: str,
    subdirs: bool,
    shard: int | None,
    noise: str,
    offset_noise: float,
    **options: Any,
) -> Drawing:
    """The job; options: those of the sampler and of guidance."""
    if threads:
        torch.set_num_threads(threads)
    named = {"model": model, "class": classes, "image": image, "mask": mask, "latents": latents, "dtype": dtype}
    settings = {name: value for name, value in (named | options).items() if value is not None}
    denoiser = checkpoints.load(model)
    guidance = take_guidance(options, denoiser, len(seeds), device)
    engine = Engine(
        denoiser,
        sampler=take_sampler(options),
        guidance=guidance,
        dtype=getattr(torch, dtype),
        backend=backend,
        device=device,
        batch_size=batch,
        batch_invariant=batch_invariant,
        graph=graph,
    )
    shape = denoiser.img_shape
    return Drawing(
        engine,
        out,
        format=format,
        subdirs=subdirs,
        shard=shard,
        settings=settings,
        seeds=seeds,
        latents=None if latents is None else _load_latents(latents),
        class_labels=[classes[i % len(classes)] for i in range(len(seeds))] if classes else None,
        noise=noise,
        image=None if image is None else _one_a_seed(load_pngs(image, shape)[0], len(seeds)),
        mask=None if mask is None else _one_a_seed(load_pngs(mask, (1, *shape[1:]))[0] > 0, len(seeds)),
        offset_noise=offset_noise,
    )


def _goes_with_the_old(path: Path, out: Path) -> bool:
    """Whether some of it may be an earlier job's in the folder."""
    return path.is_relative_to(out) and (path.is_dir() or bool(WRITTEN.fullmatch(str(path.relative_to(out)))))


def _one_a_seed(images: torch.Tensor, count: int) -> torch.Tensor:
    """One image stands for all."""
    return images.expand(count, *images.shape[1:]) if len(images) == 1 else images


def _load_latents(path: Path) -> torch.Tensor:
    try:
        return load_file(path)["latents"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a file of latents, as `edm-engine invert` writes: {error}") from None


def _save_grid(output: PngFolder, classes: list[int] | None, names: tuple[str, ...] | None) -> None:
    """Of the files, since others may have drawn some of them."""
    count = len(output.images.numbers)
    pixels = torch.stack([load_png(output.folder / output.name(i), output.images.shape) for i in range(count)])
    asked = [classes[i % len(classes)] for i in range(count)] if classes else None
    texts = None if asked is None else [names[c] if names else str(c) for c in asked]
    columns = len(classes) if classes and len(classes) > 1 else None
    save_grid(pixels, output.folder / GRID, columns=columns, labels=texts, scale=2)
