"""Feature extractors: the networks whose numbers quality is measured on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..images import to_uint8
from ..prepare import find_device
from .classifier import WEIGHTS, load_classifier


@dataclass(frozen=True)
class FeatureExtractor:
    """Images to features and class probabilities; any network can be one.

    name: says which network, to the bit of its weights: distances of two extractors do not compare.
    dim: features an image. img_shape: what an image must be, None for [1 or 3, H, W] of any size.
    extract: uint8 [B, C, H, W] -> (features [B, dim] float32, probabilities [B, K] float64).
    """

    name: str
    dim: int
    img_shape: tuple[int, ...] | None
    extract: Callable[[Tensor], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features, probabilities) of images [B, C, H, W], on the CPU: uint8, or float in [-1, 1].

        Floats are first made the bytes that a PNG would hold, so that images measured while they are drawn and images
        measured from files give the same figures.
        """
        if images.shape[1:] != self.img_shape and (
            self.img_shape or images.dim() != 4 or images.shape[1] not in (1, 3)
        ):
            allowed = ", ".join(map(str, self.img_shape or ("1 or 3", "H", "W")))
            raise ValueError(f"images are {list(images.shape)}; {self.name} knows [B, {allowed}]")
        features, probabilities = self.extract(images if images.dtype == torch.uint8 else to_uint8(images))
        return features.cpu(), probabilities.cpu()


def classifier_features() -> FeatureExtractor:
    """The 128 numbers before the last layer of the Fashion-MNIST classifier that ships; images [B, 1, 32, 32]."""
    classifier = load_classifier()

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(images.float() / 127.5 - 1)
        return features, classifier.head(features).double().softmax(1)

    return FeatureExtractor(f"fashion-mnist-classifier {_digest(WEIGHTS)}", 128, (1, 32, 32), extract)


def inception_features(path: Path, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The 2048 pool features of Inception-v3 from a torchscript file: those of the published FID and IS.

    The file is the TorchScript form of inception-2015-12-05 that the EDM and StyleGAN code measures with (it resizes
    by itself); it is called as ``model(uint8 [B, 3, H, W], return_features=True)``. Gray images are repeated to three
    channels. Probabilities are those of its last layer, ``output``, without the bias, as the published IS has them.

    Raises ValueError for a file that is not such a network, and a device that is not there.
    """
    device = find_device(device)
    what = f"{path} is not the TorchScript file of inception-2015-12-05"
    try:
        model = torch.jit.load(str(path), map_location=device).eval()
        weight = model.output.weight.detach().to(torch.float64)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(f"{what}: {str(error).strip().splitlines()[0]}") from None

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features = model(images.to(device).expand(-1, 3, -1, -1), return_features=True)
        if features.shape != (len(images), weight.shape[1]):
            raise ValueError(f"{what}: its features are {list(features.shape)}, not [{len(images)}, {weight.shape[1]}]")
        return features.float(), (features.double() @ weight.T).softmax(1)

    return FeatureExtractor(f"inception {_digest(path)}", weight.shape[1], None, extract)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
