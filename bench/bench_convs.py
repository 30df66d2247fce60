"""The networks' convolutions one by one on a CPU: oneDNN on packed weights, our own loops, and whom the rule chooses.

    python -m bench.bench_convs [--network fashion-mnist cifar10 imagenet64] [--batch 1 8] [--dtype float32 bfloat16]

With bias and sum inside, every shape that a network has, as often as it comes in an evaluation. The rule is
`engine.networks.winograd.tile_for`; weights are in the caches here, as they are not in a whole network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.bench_ops import Shape, shapes
from bench.bench_unet import load
from bench.harness import parser, shown_in_the_end, write
from bench.timing import measure
from engine.networks import native_ops, winograd

WAYS = ("us oneDNN", "us m = 1", "us m = 2", "us m = 4")


def ways_to_convolve(shape: Shape, batch: int, dtype: torch.dtype) -> tuple[dict[str, Callable[[], object]], str]:
    """oneDNN if it knows the dtype, and each size of tile; and the one that the rule takes."""
    channels_in, channels_out, height, width, kernel = shape
    x = torch.randn(batch, channels_in, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    past = torch.randn(batch, channels_out, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels_out, channels_in, kernel, kernel).to(dtype)
    bias, padding, ones = torch.randn(channels_out).to(dtype), [kernel // 2] * 2, [1, 1]
    calls: dict[str, Callable[[], object]] = {}
    if winograd.onednn_knows(dtype):
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, ones, ones, 1, list(x.shape))
        calls["oneDNN"] = lambda: torch.ops.mkldnn._convolution_pointwise.binary(
            x, past, packed, bias, padding, ones, ones, 1, "add", 1.0, None, [], ""
        )
    own = winograd.pack(weight)
    for m in (1,) if kernel == 1 else (2, 4):
        calls[f"m = {m}"] = lambda m=m: native_ops._convolve(x, own, channels_out, bias, past, m)
    m = winograd.tile_for(x, weight, kernel // 2)
    return calls, "oneDNN" if m is None else f"m = {m}"


def row_of(network: str, shape: Shape, count: int, dtype: str, batch: int, seconds: float) -> dict[str, Any]:
    calls, rule = ways_to_convolve(shape, batch, getattr(torch, dtype))
    times = measure(calls, torch.device("cpu"), seconds)
    us = {f"us {way}": t.p50 * 1e6 for way, t in times.items()}
    start = {"network": network, "shape": "x".join(map(str, shape)), "times": count, "dtype": dtype, "batch": batch}
    best = min(times, key=lambda way: times[way].p50)
    return start | dict.fromkeys(WAYS, "") | us | {"rule": rule, "best": best}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--network", nargs="+", default=["fashion-mnist", "cifar10"])
    arguments.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    arguments.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    arguments.add_argument("--seconds", type=float, default=0.3, help="For each way.")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    notes = (
        "Microseconds, medians of 15 interleaved rounds, channels_last, bias and sum inside. shape: channels in and "
        "out, height, width, kernel. times: calls an evaluation."
    )
    rows: list[dict[str, Any]] = []
    save = partial(write, "convs", torch.device("cpu"), rows, notes, options.results)
    with shown_in_the_end(save), torch.no_grad():
        for network in options.network:
            found = shapes(load(network))[0]
            for shape in (each for each in found if each[1] % 16 == 0):  # our loops make 16 channels at once
                rows += [
                    row_of(network, shape, found[shape], dtype, batch, options.seconds)
                    for dtype in options.dtype
                    for batch in options.batch
                ]
                save(show=False)


if __name__ == "__main__":
    main()
