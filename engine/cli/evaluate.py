"""``edm-engine evaluate``: draw images and measure how good they are, with intervals, in one table."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from .. import checkpoints
from ..engine import Engine
from ..metrics import (
    FeatureExtractor,
    Measure,
    Quality,
    classifier_features,
    draw_measured,
    first_features,
    frechet_distance,
    inception_features,
    real_images,
    reference_statistics,
)
from ..metrics.manifolds import require_enough
from ..metrics.quality import share
from ..metrics.reference import DATA_SETS
from ..plan import Plan, Sampler
from ..record import write as write_record
from ..training.data import FASHION_MNIST_CLASSES
from .guidance_options import guidance_options, take_guidance
from .sampler_options import sampler_options, take_sampler
from .statistics import inception_option
from .types import DTYPES, OutFile

_TRAIN, _TEST = DATA_SETS


@click.command()
@click.option("--model", default="fashion-mnist", show_default=True, help="A shipped name or a checkpoint.")
@click.option("--images", type=int, default=1000, show_default=True, help="Seeds 0 to images - 1, classes in turn.")
@sampler_options
@guidance_options
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--batch", type=int, default=100, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--reference", help=f"Real images: {', '.join(DATA_SETS)}, a folder of PNGs, or what `edm-engine statistics` wrote."
)
@inception_option
@click.option("--json", "out", type=OutFile(), help="Also write the table as JSON.")
@click.option("--record", is_flag=True, help="Write the figure into the metadata of MODEL, which must be a file.")
def evaluate(
    model: str,
    images: int,
    dtype: str,
    batch: int,
    device: str,
    reference: str | None,
    inception: Path | None,
    out: Path | None,
    record: bool,
    **options: Any,
) -> None:
    """Draw images class by class in turn and measure them: those the shipped Fashion-MNIST classifier recognises,
    Frechet distance, inception-style score, precision and recall, each with its 95% interval over seeds."""
    if record and not Path(model).is_file():
        raise click.UsageError(f"--record needs a file as --model, not {model!r}")
    if record:
        checkpoints.read_metadata(Path(model))  # refuses other formats before any work
    settings = {name: value for name, value in click.get_current_context().params.items() if value is not None}
    given = "".join(f" --{name.replace('_', '-')} {_typed(v)}" for name, v in options.items() if v is not None)
    denoiser = checkpoints.load(model)
    guidance = take_guidance(options, denoiser, images, device)
    sampler = take_sampler(options)
    engine = Engine(
        denoiser, sampler=sampler, guidance=guidance, dtype=getattr(torch, dtype), batch_size=batch, device=device
    )
    known = engine.denoiser.img_shape == (1, 32, 32) and engine.denoiser.label_dim == len(FASHION_MNIST_CLASSES)
    if not known and not inception:
        shape = engine.denoiser.img_shape
        raise click.UsageError(f"model {model!r} draws {shape}; the classifier knows Fashion-MNIST: give --inception")
    if record and not known:
        raise click.UsageError(f"--record writes the share that is recognised; the classifier does not know {model!r}")
    if reference is None and inception:
        raise click.UsageError("--inception needs --reference")
    extractor = inception_features(inception, device) if inception else classifier_features()
    quality, real, missing = _prepare(reference or _TRAIN, extractor, images)
    labels = torch.arange(images) % engine.denoiser.label_dim if engine.denoiser.label_dim else None
    hits, seconds = draw_measured(engine, quality, labels, known, progress=True)
    found = quality.measures(real, missing)
    nfe: int | str = Plan(sampler, denoiser.preconditioning).nfe if isinstance(sampler, Sampler) else "adaptive"
    recognised = Measure("recognised", missing=f"the classifier knows Fashion-MNIST, not images of {model}")
    if known and labels is not None:
        figure = _by_class(labels, hits)
        recognised = share("recognised", hits)
        if record:
            how = f"edm-engine evaluate --images {images} --dtype {dtype}{given}"
            checkpoints.annotate(Path(model), {"recognised": figure, "recognised_by": how})
    floor = _floor(quality) if reference in (None, _TRAIN) and not inception else []
    table = [recognised, found[0], *floor, *found[1:], Measure("images/s", images / seconds)]
    click.echo("\n".join([_header(reference or _TRAIN, quality), *map(_row, table), f"{'NFE':<42}{nfe:>9}"]))
    if guidance is not None:
        click.echo(f"{'':<42} guided evaluations run two networks")
    if out is not None:
        record_of = {"measures": [asdict(measure) for measure in table], "nfe": nfe, "seconds": seconds}
        write_record(out, {"settings": settings, "features": extractor.name, **record_of})


def _prepare(reference: str, extractor: FeatureExtractor, images: int) -> tuple[Quality, Tensor | None, str]:
    """What measures; the features of as many real images as are drawn, or why there are none."""
    statistics = reference_statistics(reference, extractor)
    try:
        batches = real_images(reference, extractor.img_shape)
    except (ValueError, FileNotFoundError) as error:
        return Quality(extractor, statistics, images, keep=False), None, str(error)
    real = first_features(batches, extractor, images)
    require_enough("real", real)  # of a folder, before anything is drawn
    return Quality(extractor, statistics, images), real, ""


def _by_class(labels: Tensor, hits: Tensor) -> str:
    """Print how many of each class are recognised; the figure of all."""
    asked, right = torch.bincount(labels, minlength=10), torch.bincount(labels[hits], minlength=10)
    for name, good, count in zip(FASHION_MNIST_CLASSES, right.tolist(), asked.tolist(), strict=True):
        click.echo(f"{name:<10} {good:>5} of {count}")
    figure = f"{right.sum().item()} of {len(labels)} ({100 * right.sum().item() / len(labels):.1f}%)"
    click.echo(f"recognised {figure}")
    return figure


def _floor(quality: Quality) -> list[Measure]:
    """What the distance is of real images that were not trained on."""
    test = reference_statistics(_TEST, quality.extractor)
    return [Measure(f"  of the {test.count:,} real test images", frechet_distance(quality.reference, test))]


def _header(reference: str, quality: Quality) -> str:
    what = f"\n{quality.count} images against {reference} ({quality.reference.count:,} images)"
    return f"{what}, features of {quality.extractor.name}\n{'measure':<42}{'value':>9}  95% interval over seeds"


def _row(measure: Measure) -> str:
    if measure.value is None:
        return f"{measure.name:<42}{'-':>9}  {measure.missing}"
    line = f"{measure.name:<42}{measure.value:>9.4g}"
    return line if measure.low is None else f"{line}  {measure.low:.4g} to {measure.high:.4g}"


def _typed(value: object) -> str:
    """A parameter's value as one would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
