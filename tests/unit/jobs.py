"""A small job that goes to files."""

from pathlib import Path
from typing import Any

import engine
from engine.drawing import Drawn
from tests.helpers import wavy

SEEDS = [*range(995, 1005), 3, 7**20]
LABELS = [i % 4 for i in range(len(SEEDS))]


def make(batch_size: int = 5, steps: int = 2, **options: Any) -> engine.Engine:
    denoiser = wavy(engine.preconditioning.EDM(), shape=(3, 8, 6), label_dim=4)
    options = {"sampler": engine.samplers.edm(steps, S_churn=1)} | options
    return engine.Engine(denoiser, batch_size=batch_size, **options)


def draw(folder: Path, prepared: engine.Engine | None = None, **job: Any) -> Drawn:
    return engine.draw_to(prepared or make(), folder, **{"seeds": SEEDS, "class_labels": LABELS} | job)
