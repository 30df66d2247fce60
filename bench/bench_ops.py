"""The networks' operations one by one on a GPU: who is quickest where, and whom the engine's rules choose.

    python -m bench.bench_ops [--network cifar10 imagenet64] [--batch 1 8 64 512]

Convolutions: cuDNN's and our sum after it, against our own kernel with every tile. GroupNorm: one read against the
split reduction. Every shape that a network has, in bfloat16, as often as it comes in an evaluation. The rules
(`kernels.conv.own_tile`, `kernels.group_norm.reads_once`) were written from counts, to be corrected by
these timings.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from engine.kernels import conv, group_norm, residual
from torch import Tensor

import engine
from bench.bench_unet import load
from bench.harness import measure, parser, write
from engine.networks import triton_ops
from engine.networks.layers import Conv2d, GroupNorm
from engine.networks.ops import TORCH

Call = Callable[[], object]
Shape = tuple[
    int, ...
]  # of a convolution: channels in and out, height, width, kernel; of a norm: channels, height, width
SPLIT = 10**6  # multiprocessors that no batch fills: the split reduction is chosen


def shapes(denoiser: engine.Denoiser) -> tuple[Counter[Shape], Counter[Shape]]:
    """Convolutions whose sizes ours knows, and norms, of one evaluation, with how often each comes."""
    convolutions, norms = Counter[Shape](), Counter[Shape]()

    def conv2d(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        if len(weight) % 16 == 0 and weight.shape[1] % 16 == 0:
            convolutions[(weight.shape[1], weight.shape[0], *x.shape[2:], weight.shape[2])] += 1
        return TORCH.conv2d(x, weight, *rest, **named)

    def norm(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        norms[(len(weight), *x.shape[2:])] += 1
        return TORCH.group_norm(x, weight, *rest, **named)

    network = copy.deepcopy(denoiser.model).eval()
    for module in network.modules():
        if isinstance(module, Conv2d | GroupNorm):
            module.ops = replace(TORCH, conv2d=conv2d, group_norm=norm)
    with torch.no_grad():
        labels = torch.zeros(1, denoiser.label_dim) if denoiser.label_dim else None
        network(torch.zeros(1, *denoiser.img_shape), torch.zeros(1), labels)
    return convolutions, norms


def ways_to_convolve(shape: Shape, batch: int, device: torch.device) -> dict[str, Call]:
    """With bias and sum: cuDNN and one launch more, and each tile of ours."""
    channels_in, channels_out, height, width, kernel = shape
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x = torch.randn(batch, channels_in, height, width, **options).contiguous(memory_format=torch.channels_last)
    past = torch.randn(batch, channels_out, height, width, **options).contiguous(memory_format=torch.channels_last)
    weight, bias = (
        torch.randn(channels_out, channels_in, kernel, kernel, **options),
        torch.randn(channels_out, **options),
    )
    weight, out = weight.contiguous(memory_format=torch.channels_last), torch.empty_like(past)

    def ours(tile: conv.Tile) -> Call:
        return lambda: conv.conv2d(x, weight, bias, past, out, tile)

    def cudnn() -> None:
        residual.add_residual(triton_ops._convolve(x, weight, kernel // 2), bias, past)

    calls: dict[str, Call] = {"cuDNN": cudnn}
    return calls | {_name(tile): ours(tile) for tile in conv.TILES}


def ways_to_normalise(shape: Shape, batch: int, device: torch.device) -> dict[str, Call]:
    """With the sum of the embedding and silu, as most norms of a network are."""
    channels, height, width = shape
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x = torch.randn(batch, channels, height, width, **options).contiguous(memory_format=torch.channels_last)
    weight, bias, out = torch.randn(channels, **options), torch.randn(channels, **options), torch.empty_like(x)
    add, groups = torch.randn(batch, channels, device=device), min(32, channels // 4)

    def call(processors: int) -> Call:
        return lambda: group_norm.group_norm(
            x, weight, bias, groups, 1e-5, out, None, silu=True, beside=None, add=add, scale=None, shift=None,
            taps=(), up=False, keep_scale=1.0, processors=processors,
        )  # fmt: skip

    return {"one read": call(1), "split": call(SPLIT)}


def chosen(shape: Shape, batch: int, device: torch.device) -> str:
    """The way that the engine's rules take."""
    processors = triton_ops._processors(device)
    if len(shape) == 3:
        channels, height, width = shape
        once = group_norm.reads_once(batch, channels, min(32, channels // 4), height * width, processors)
        return "one read" if once else "split"
    _, channels_out, height, width, kernel = shape
    tile = conv.own_tile(batch * height * width, channels_out, kernel, processors)
    return "cuDNN" if tile is None else _name(tile)


def rows_of(
    network: str, kind: str, found: Counter[Shape], batches: list[int], device: torch.device, seconds: float
) -> list[dict[str, Any]]:
    """Microseconds of every way, the chosen, the quickest, and what to choose it would save an evaluation."""
    ways = ways_to_convolve if kind == "convolution" else ways_to_normalise
    rows = []
    for shape, count in found.items():
        for batch in batches:
            times = {way: t.p50 * 1e6 for way, t in measure(ways(shape, batch, device), device, seconds).items()}
            rule, best = chosen(shape, batch, device), min(times, key=lambda way: times[way])
            rows.append(
                {"network": network, "what": kind, "shape": "x".join(map(str, shape)), "times": count, "batch": batch}
                | {"us": " ".join(f"{way} {t:.1f}" for way, t in times.items()), "rule": rule, "best": best}
                | {"us to gain an evaluation": count * (times[rule] - times[best])}
            )
    return rows


def _name(tile: tuple[int, ...]) -> str:
    return f"{tile[0]}x{tile[1]}"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--network", nargs="+", default=["cifar10", "imagenet64"])
    arguments.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64, 512])
    arguments.add_argument("--seconds", type=float, default=0.01, help="For each way.")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda":
        arguments.error(f"--device is {device}; allowed: a CUDA device, whose kernels these are")
    rows = []
    with torch.no_grad():
        for network in options.network:
            for kind, found in zip(("convolution", "norm"), shapes(load(network)), strict=True):
                rows += rows_of(network, kind, found, options.batch, device, options.seconds)
    notes = "bfloat16, channels_last; microseconds, medians of 15 interleaved rounds. times: calls an evaluation."
    write("ops", device, rows, notes)


if __name__ == "__main__":
    main()
