"""``edm-engine info``: what a checkpoint is, what an evaluation of it costs, and how to sample from it."""

import json
import math
from typing import Any

import click
import torch

from .. import checkpoints
from ..denoiser import Denoiser
from ..measure import measure
from ..plan import Plan, Sampler
from ..preconditioning import Discrete, Preconditioning
from ..samplers import ddim, dpmpp_2m, edm, unipc
from .types import JsonObject

_BATCHES = (1, 8, 64, 256)
_DTYPES = (torch.float32, torch.bfloat16)


@click.command()
@click.argument("checkpoint")
@click.option("--config", type=JsonObject(), help="What CHECKPOINT does not say of its network, as a JSON object.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def info(checkpoint: str, config: dict[str, Any] | None, as_json: bool) -> None:
    """Print architecture, size, cost, preconditioning, sigma range, good samplers and memory of a CHECKPOINT.

    A shipped name, or a file of any format that can be sampled from. FLOPs are two a multiply-add. Memory is weights
    and the most activations alive at once, counted from the shapes; the sampler's own state and what a device's
    libraries take come on top.
    """
    facts = describe(checkpoints.load(checkpoint, config=config))
    click.echo(json.dumps(facts, indent=2, default=str) if as_json else "\n".join(_lines(facts)))


def describe(denoiser: Denoiser) -> dict[str, Any]:
    """The facts by name; bytes and FLOPs as integers, an infinite sigma as the string "inf"."""
    costs = {str(dtype).removeprefix("torch."): measure(denoiser, dtype) for dtype in _DTYPES}
    cost = costs["float32"]
    sigmas = (denoiser.sigma_min, denoiser.sigma_max)
    return {
        "architecture": type(denoiser.model).__name__,
        "image": list(denoiser.img_shape),
        "classes": denoiser.label_dim,
        "labels_are_classes": denoiser.labels_are_classes,
        "class_names": denoiser.class_names,
        "parameters": cost.parameters,
        "flops_per_evaluation": cost.flops,
        "preconditioning": repr(denoiser.preconditioning),
        "sigma_range": [sigma if math.isfinite(sigma) else str(sigma) for sigma in sigmas],
        "samplers": recommended(denoiser),
        "memory": {name: {batch: each.memory(batch) for batch in _BATCHES} for name, each in costs.items()},
        "config": denoiser.config,
    }


def recommended(denoiser: Denoiser) -> list[dict[str, Any]]:
    """Samplers to begin with, as they are asked for on the command line, and their evaluations.

    The EDM paper's own choice (18 steps up to 32 pixels, 40 above), and two that need fewer evaluations; for discrete
    timesteps first what Lin et al. 2024 recommend. Those that have no plan for this network, with too few noise levels
    say, are left out.
    """
    steps = 18 if max(denoiser.img_shape[1:]) <= 32 else 40
    options: dict[str, Sampler] = {
        f"edm --steps {steps}": edm(steps),
        "dpmpp_2m --steps 20": dpmpp_2m(20),
        "unipc --steps 10": unipc(10),
    }
    if isinstance(denoiser.preconditioning, Discrete):
        trailing: dict[str, Sampler] = {"ddim --steps 50 --timesteps trailing": ddim(50, discretization="trailing")}
        options = trailing | options
    evaluations = {name: _evaluations(sampler, denoiser.preconditioning) for name, sampler in options.items()}
    return [{"sampler": name, "evaluations": count} for name, count in evaluations.items() if count]


def _evaluations(sampler: Sampler, preconditioning: Preconditioning) -> int:
    try:
        return Plan(sampler, preconditioning).nfe
    except (ValueError, ArithmeticError):
        return 0


def _lines(facts: dict[str, Any]) -> list[str]:
    shape = "x".join(map(str, facts["image"]))
    kind = "classes" if facts["labels_are_classes"] else "numbers of embeddings"
    classes = f", {facts['classes']} {kind}" if facts["classes"] else ""
    low, high = facts["sigma_range"]
    memory = [
        f"  {name:<10}" + "".join(f"{f'batch {batch}: {_bytes(size)}':>22}" for batch, size in sizes.items())
        for name, sizes in facts["memory"].items()
    ]
    samplers = [f"  {each['sampler']:<40}{each['evaluations']} evaluations" for each in facts["samplers"]]
    return [
        f"architecture     {facts['architecture']}, images of {shape}{classes}",
        f"parameters       {facts['parameters']:,}",
        f"FLOPs            {facts['flops_per_evaluation'] / 1e9:.2f} GFLOP an image and evaluation",
        f"preconditioning  {facts['preconditioning']}",
        f"sigma range      {low} to {high}",
        "samplers",
        *samplers,
        "memory: weights and activations",
        *memory,
    ]


def _bytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
