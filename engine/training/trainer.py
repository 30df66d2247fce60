"""The trainer: any loss, Muon and Adam, EMA, mixed precision, checkpoints that resume to the same next step."""

import copy
import json
import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..denoiser import Denoiser
from ..files import atomic_path, write_bytes
from ..networks.precision import cast_network
from ..prepare import find_device
from .augment import Augment
from .loss import EDMLoss, Loss
from .optimizer import MuonAdam

# Streams of one seed: steps count from 0, these are far from them and from each other.
_EPOCHS, _DROPOUT = 1 << 31, 3 << 30
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes; stored in its checkpoints and in the weights.

    A run ends after ``images`` images. The learning rates (`MuonAdam`) rise over the first ``warmup_images``, and fall
    linearly to nothing over the last ``anneal`` of the run, a fraction. dtype: of the copy that computes the
    loss and its gradients, "float32" or "bfloat16".
    """

    network: dict[str, Any]
    images: int = 1_020_000
    batch_size: int = 32
    muon_lr: float | None = 0.03
    adam_lr: float = 2e-3
    warmup_images: int = 2_000
    anneal: float = 0.6
    ema_halflife_images: int = 10_000
    augment: Augment = field(default_factory=Augment)
    seed: int = 0
    dtype: str = "bfloat16"
    loss: Loss = field(default_factory=EDMLoss)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:  # float16 would need its gradients scaled
            raise ValueError(f"dtype is {self.dtype!r}; allowed: {', '.join(map(repr, DTYPES))}")
        for name in ("images", "batch_size", "warmup_images", "ema_halflife_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: an integer from 1")
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal is {self.anneal}; allowed: a fraction, 0 to 1")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to {2**31 - 1}")


class Trainer:
    """Trains a Denoiser on images [N, C, H, W] float32 in [-1, 1] with labels [N] int64.

    Float32 master weights; a copy in ``config.dtype`` does the work and is refreshed once a step. The batch, noise
    and augmentation of a step depend on (seed, step) alone, so a resumed run continues as if never stopped.
    """

    def __init__(
        self, config: TrainConfig, images: Tensor, labels: Tensor, device: str = "cpu", compile: bool = True
    ) -> None:
        self.config, self.device = config, find_device(device)
        if config.batch_size > len(images):
            raise ValueError(f"batch_size is {config.batch_size}; allowed: at most the {len(images)} images")
        self.images, self.labels = images, labels
        with _seeded(config.seed, self.device):
            self.master = Denoiser.from_config(config.network).to(self.device)
        config.loss.require(self.master.preconditioning)
        classes = self.master.label_dim
        if classes and int(labels.max()) >= classes:
            raise ValueError(f"labels contains {int(labels.max())}; allowed: 0 to {classes - 1}, as label_dim says")
        self.ema = copy.deepcopy(self.master).eval().requires_grad_(False)
        self.worker = copy.deepcopy(self.master)
        cast_network(self.worker.model, getattr(torch, config.dtype))
        self.optimizer = MuonAdam(self.master, config.adam_lr, config.muon_lr)
        self.step = 0
        self.runs = [(0, config.images)]  # (begun at, planned length) of this run and those it continues
        self._loss = torch.compile(config.loss) if compile and config.loss.traceable else config.loss
        if compile and not config.loss.traceable:
            self.worker.model.compile()
        self._pairs = list(zip(self.master.parameters(), self.worker.parameters(), strict=True))

    @property
    def images_seen(self) -> int:
        return self.step * self.config.batch_size

    def run(self, images: int | None = None) -> Iterator[dict[str, float]]:
        """Train until ``images`` were seen in all, at most the whole run; yields a step's {step, images, loss}."""
        while self.images_seen < min(self.config.images, math.inf if images is None else images):
            loss = self.train_step()
            yield {"step": self.step, "images": self.images_seen, "loss": loss}

    def train_step(self) -> float:
        batch = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), self.batch(self.step))
        with _seeded((self.config.seed << 32) + _DROPOUT + self.step, self.device):  # dropout: torch's own generator
            loss = self._loss(self.worker, *batch).mean()
        value = loss.item()
        if not math.isfinite(value):
            raise ArithmeticError(f"step {self.step} of seed {self.config.seed}: the loss is {value}")
        loss.backward()
        for master, worker in self._pairs:
            # In master's own memory order: fused Adam pairs elements by address, and worker is channels_last.
            master.grad = None if worker.grad is None else torch.empty_like(master).copy_(worker.grad)
            worker.grad = None
        self.optimizer.step(self._lr_factor())
        with torch.no_grad():
            for master, worker in self._pairs:
                worker.copy_(master)
        self.step += 1
        self._update_ema()
        return value

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """(images, eps, sigma, one-hot class_labels, augment_labels) of one step; a network without classes is given
        no labels."""
        config = self.config
        generator = torch.Generator().manual_seed((config.seed << 32) + step)
        index = self._indices(step)
        images, augment_labels = config.augment(self.images[index], generator)
        eps = torch.randn(images.shape, generator=generator)
        sigma = config.loss.sigma(len(index), generator)
        classes = self.master.label_dim
        one_hot = torch.nn.functional.one_hot(self.labels[index], classes).float() if classes else None
        return images, eps, sigma, one_hot, augment_labels

    def _indices(self, step: int) -> Tensor:
        """Every epoch visits all images once, in an order drawn from (seed, epoch); the ragged end is dropped."""
        per_epoch = len(self.images) // self.config.batch_size
        epoch, position = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed((self.config.seed << 32) + _EPOCHS + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        return order[position * self.config.batch_size :][: self.config.batch_size]

    def _lr_factor(self) -> float:
        config, seen = self.config, self.images_seen
        warmth = min(1.0, (seen + config.batch_size) / config.warmup_images)
        return warmth * min(1.0, (1 - seen / config.images) / config.anneal) if config.anneal else warmth

    @torch.no_grad()
    def _update_ema(self) -> None:
        halflife = min(self.config.ema_halflife_images, 0.05 * self.images_seen)
        beta = 0.5 ** (self.config.batch_size / max(halflife, 1e-8))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.master.parameters()), 1 - beta)

    def save(self, path: Path) -> None:
        """Write what `resume` needs, atomically. Raises OSError naming the file if it could not be written."""
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "runs": self.runs,
            "master": self.master.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch's own kind, of a disk that is full
                raise OSError(f"{path} could not be written: {str(error).partition(chr(10))[0]}") from None

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint. Raises ValueError if it was written with another config, or is damaged.

        Only ``images`` may differ, a run made longer or shorter; its learning rates are then the new run's from here.
        """
        state = _read(path, self.device)
        changed = [k for k, v in asdict(self.config).items() if k != "images" and state["config"].get(k) != v]
        if changed:
            raise ValueError(f"{path} was trained with another {', '.join(changed)}; give the same, or another folder")
        self.master.load_state_dict(state["master"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        earlier = state.get("runs", [(0, state["config"]["images"])])
        self.runs = [
            *earlier,
            *([(self.images_seen, self.config.images)] if earlier[-1][1] != self.config.images else []),
        ]
        with torch.no_grad():
            for master, worker in self._pairs:
                worker.copy_(master)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """What `Trainer.save` wrote."""
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a checkpoint of a training run, or is damaged: {line}") from None
    needed = {"config", "step", "master", "ema", "optimizer"}
    missing = needed - state.keys() if isinstance(state, dict) else needed
    if missing:
        raise ValueError(f"{path} is not a checkpoint of a training run: it has no {', '.join(sorted(missing))}")
    return state


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's own generators start from ``seed`` inside and are as before afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Log:
    """Appends the mean loss and speed of every ``every`` steps, or of those before `flush`, to a JSON-lines file.

    images_seen: where the run begins. Lines beyond it are of a run that was killed after its last checkpoint: they are
    removed, as the run repeats them.
    """

    def __init__(self, path: Path, every: int = 50, images_seen: int = 0) -> None:
        self.path, self.every = path, every
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["images"] <= images_seen]
        if kept != lines:
            write_bytes(path, "".join(kept).encode())
        self._losses: list[float] = []
        self._last: dict[str, float] = {}
        self._images, self._since = 0, time.perf_counter()

    def add(self, record: dict[str, float], batch_size: int) -> None:
        self._losses.append(record["loss"])
        self._last, self._images = record, self._images + batch_size
        if len(self._losses) >= self.every:
            self.flush()

    def flush(self) -> None:
        """A line for the steps since the last one, if there are any: a run that ends, or is saved, loses none."""
        if not self._losses:
            return
        seconds = time.perf_counter() - self._since
        mean = sum(self._losses) / len(self._losses)
        line = self._last | {"loss": mean, "images_per_second": self._images / seconds}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._losses, self._images, self._since = [], 0, time.perf_counter()
