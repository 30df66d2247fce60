"""``edm-engine statistics``: what `edm-engine evaluate --reference` compares with."""

from pathlib import Path

import click

from ..metrics import classifier_features, inception_features, measure, real_images
from ..metrics.reference import DATA_SETS
from .types import OutFile

inception_option = click.option(
    "--inception",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TorchScript file of inception-2015-12-05, for true FID and IS; without it the Fashion-MNIST classifier.",
)


@click.command("statistics")
@click.option("--data", required=True, help=f"{', '.join(DATA_SETS)}, or a folder of PNGs.")
@inception_option
@click.option("--device", default="cpu", show_default=True, help="Of Inception.")
@click.option("--out", type=OutFile(), required=True, help="A safetensors file.")
def statistics_command(data: str, inception: Path | None, device: str, out: Path) -> None:
    """Write the mean and covariance of the features of real images."""
    extractor = inception_features(inception, device) if inception else classifier_features()
    found = measure(real_images(data, extractor.img_shape), extractor)
    found.save(out, {"data": Path(data).name})
    click.echo(f"{found.count} images, {extractor.dim} features of {extractor.name}, written to {out}")
