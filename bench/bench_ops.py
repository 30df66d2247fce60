"""The networks' operations one by one on a GPU: who is quickest where, and whom the engine's rules choose.

    python -m bench.bench_ops [--network cifar10 imagenet64] [--batch 1 8 64 512]

Convolutions: cuDNN's and our sum after it, against our own kernel with every tile. GroupNorm: one read against the
split reduction. Every shape that a network has, in bfloat16, as often as it comes in an evaluation. The rules
(`kernels.conv.own_tile`, `kernels.group_norm.reads_once`) were written from counts, to be corrected by
these timings.

Memory is as in an evaluation: weights come from device memory, for all of a network's are more than the L2 cache holds,
and activations from wherever the operation before left them, in L2 where they fit.
"""

import copy
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from engine.kernels import conv, group_norm, residual
from torch import Tensor

import engine
from bench.bench_unet import load
from bench.harness import parser, shown_in_the_end, write
from bench.timing import GPU_NOTE, Call, Timing, measure
from engine.networks import triton_ops
from engine.networks.layers import Conv2d, GroupNorm
from engine.networks.ops import TORCH

# Of a convolution: channels in and out, height, width, kernel; of a norm: channels, height, width.
Shape = tuple[int, ...]


def shapes(denoiser: engine.Denoiser) -> tuple[Counter[Shape], Counter[Shape]]:
    """Convolutions whose sizes ours knows, and norms, of one evaluation, with how often each comes."""
    convolutions, norms = Counter[Shape](), Counter[Shape]()

    def conv2d(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        if weight.shape[1] % 16 == 0:
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


def weights_in_turn(shape: Shape, beside: int, device: torch.device) -> Tensor:
    """[count, channels out, channels in, kernel, kernel], each in channels_last: so many of a convolution's weights
    that a round of them, with the bytes of what is read and written beside, is more than the L2 cache holds.
    """
    channels_in, channels_out, _, _, kernel = shape
    each = channels_out * kernel * kernel * channels_in
    missing = 1.25 * torch.cuda.get_device_properties(device).L2_cache_size - beside
    count = max(1, math.ceil(missing / (2 * each)))
    made = torch.randn(count, channels_out, kernel, kernel, channels_in, dtype=torch.bfloat16, device=device)
    return made.permute(0, 1, 4, 2, 3)


def ways_to_convolve(shape: Shape, batch: int, device: torch.device) -> tuple[dict[str, Call], int]:
    """With bias and sum: cuDNN and one launch more, and each tile of ours; and how many convolutions a call makes."""
    channels_in, channels_out, height, width, kernel = shape
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x = torch.randn(batch, channels_in, height, width, **options).contiguous(memory_format=torch.channels_last)
    past = torch.randn(batch, channels_out, height, width, **options).contiguous(memory_format=torch.channels_last)
    bias, out = torch.randn(channels_out, **options), torch.empty_like(past)
    weights = list(weights_in_turn(shape, x.nbytes + past.nbytes + out.nbytes, device))

    def ours(tile: conv.Tile) -> None:
        for weight in weights:
            conv.conv2d(x, weight, bias, past, out, tile)

    def cudnn() -> None:
        for weight in weights:
            residual.add_residual(triton_ops._convolve(x, weight, kernel // 2), bias, past)

    calls: dict[str, Call] = {"cuDNN": cudnn}
    return calls | {_name(tile): partial(ours, tile) for tile in conv.TILES}, len(weights)


def ways_to_normalise(shape: Shape, batch: int, device: torch.device) -> tuple[dict[str, Call], int]:
    """With the sum of the embedding and silu, as most norms of a network are; one norm a call."""
    channels, height, width = shape
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x = torch.randn(batch, channels, height, width, **options).contiguous(memory_format=torch.channels_last)
    weight, bias, out = torch.randn(channels, **options), torch.randn(channels, **options), torch.empty_like(x)
    add, groups, processors = torch.randn(batch, channels, device=device), _groups(channels), _processors(device)

    def call(once: bool) -> None:
        group_norm.group_norm(
            x, weight, bias, groups, 1e-5, out, None, silu=True, beside=None, add=add, scale=None, shift=None,
            taps=(), up=False, keep_scale=1.0, processors=processors, once=once,
        )  # fmt: skip

    slab = group_norm.slab_of(batch, channels, groups, height * width, processors)[2]
    calls: dict[str, Call] = {"one read": partial(call, True)} if slab <= group_norm.LARGEST_SLAB else {}
    return calls | {"split": partial(call, False)}, 1


def chosen(shape: Shape, batch: int, device: torch.device) -> str:
    """The way that the engine's rules take."""
    processors = _processors(device)
    if len(shape) == 3:
        channels, height, width = shape
        once = group_norm.reads_once(batch, channels, _groups(channels), height * width, processors)
        return "one read" if once else "split"
    _, channels_out, height, width, kernel = shape
    tile = conv.own_tile(batch * height * width, channels_out, kernel, processors)
    return "cuDNN" if tile is None else _name(tile)


def that_run(calls: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """The ways that can be called, and why the others cannot: a tile may need more than this device has."""
    failed: dict[str, str] = {}
    for way, call in calls.items():
        try:
            call()
        except Exception as error:  # of a compiler, say, which must not cost the other ways
            failed[way] = type(error).__name__
    return {way: call for way, call in calls.items() if way not in failed}, failed


def row_of(shape: Shape, count: int, batch: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Microseconds of every way, the chosen, the quickest, and what to choose it would save an evaluation."""
    ways = ways_to_convolve if len(shape) == 5 else ways_to_normalise
    every, calls_in_one = ways(shape, batch, device)
    calls, failed = that_run(every)
    times = measure(calls, device, seconds)
    us = {way: t.p50 * 1e6 / calls_in_one for way, t in times.items()}
    host = {way: (t.host or 0.0) * 1e6 / calls_in_one for way, t in times.items()}
    rule, best = chosen(shape, batch, device), min(us, key=lambda way: us[way])
    return {
        "us": _listed(us) + "".join(f" {way} {why}" for way, why in failed.items()),
        "timed": _ways(times),
        "us by the host": _listed(host),
        "rule": rule,
        "best": best,
        "us to gain an evaluation": count * (us[rule] - us[best]) if rule in us else "",
    }


def _listed(us: dict[str, float]) -> str:
    return " ".join(f"{way} {t:.1f}" for way, t in us.items())


def _ways(times: dict[str, Timing]) -> str:
    """How all were timed; each where they differ."""
    found = {t.way for t in times.values()}
    return found.pop() if len(found) == 1 else " ".join(f"{way} {t.way}" for way, t in times.items())


def _processors(device: torch.device) -> int:
    return triton_ops._processors(device)


def _groups(channels: int) -> int:
    return min(32, channels // 4)


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
    notes = (
        "bfloat16, channels_last; microseconds, medians of 15 interleaved rounds. times: calls an evaluation. Weights "
        f"come from device memory, activations from L2 where they fit. {GPU_NOTE}"
    )
    rows: list[dict[str, Any]] = []
    save = partial(write, "ops", device, rows, notes, options.results)
    with shown_in_the_end(save), torch.no_grad():
        for network in options.network:
            for kind, found in zip(("convolution", "norm"), shapes(load(network)), strict=True):
                for shape, count in found.items():
                    start = {"network": network, "what": kind, "shape": "x".join(map(str, shape)), "times": count}
                    rows += [
                        start | {"batch": batch} | row_of(shape, count, batch, device, options.seconds)
                        for batch in options.batch
                    ]
                save(show=False)


if __name__ == "__main__":
    main()
