"""A small Fashion-MNIST classifier: recognises samples, and is the feature extractor that ships.

It is trained on the 60,000 real training images alone and never sees a generated one.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import atomic_path

WEIGHTS = Path(__file__).parent / "fashion-mnist-classifier.safetensors"


class Classifier(nn.Module):
    """Images [B, 1, 32, 32] float32 in [-1, 1] -> logits [B, 10]; ``features`` gives the 128 numbers before them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [1, width, width * 2, width * 2, width * 4]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(width * 4, 10)

    def features(self, images: Tensor) -> Tensor:
        x = images
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x, 2) if index < 3 else x
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(images), 0.2, self.training))

    @torch.no_grad()
    def classify(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """The class of each image, int64 [N]."""
        return torch.cat([self(batch).argmax(1) for batch in images.split(batch_size)])


def load_classifier() -> Classifier:
    """The classifier that ships with the package, in eval mode."""
    classifier = Classifier()
    state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(WEIGHTS).items()}
    classifier.load_state_dict(state)
    return classifier.eval()


def save_classifier(classifier: Classifier, path: Path, notes: dict[str, str]) -> None:
    """Weights in float16, with ``notes`` in the metadata."""
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in classifier.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary, notes)


def train_classifier(
    images: Tensor, labels: Tensor, *, epochs: int = 8, batch_size: int = 128, seed: int = 0
) -> Iterator[Classifier]:
    """Adam with a one-cycle rate, random shifts and mirrored images; yields the classifier after each epoch.

    Raises ValueError for no epoch, or fewer images than a batch.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; allowed: an integer from 1")
    if len(images) < batch_size:
        raise ValueError(f"batch_size is {batch_size}; allowed: at most the {len(images)} images")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):  # initialisation and dropout draw from torch's own generator
        torch.manual_seed(seed)
        classifier = Classifier()
        dropout = torch.get_rng_state()
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(epochs):
        classifier.train()
        order = torch.randperm(len(images), generator=generator)
        with torch.random.fork_rng([]):
            torch.set_rng_state(dropout)
            for index in order[: len(images) // batch_size * batch_size].split(batch_size):
                loss = F.cross_entropy(classifier(_jitter(images[index], generator)), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            dropout = torch.get_rng_state()
        yield classifier.eval()


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """One shift of up to two pixels for the batch, half of its images mirrored."""
    dx, dy = torch.randint(-2, 3, [2], generator=generator).tolist()
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(3), images).roll((dy, dx), (2, 3))
