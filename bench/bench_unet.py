"""The network: milliseconds an image and evaluation, as usually written, compiled, and as an engine prepares it.

    python -m bench.bench_unet [--network fashion-mnist cifar10 imagenet64] [--batch 1 8]

"usual" is the plain module in float32 and contiguous memory; "plain" the same cast to bfloat16 and channels_last;
"compile" torch.compile of that with freezing; "engine" what `engine.Engine` runs. Weights are random but for the
shipped network: they do not matter to time. Operations are those that torch's profiler sees in one evaluation.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

import engine
from bench.harness import measure, parser, write
from engine.networks.precision import cast_network

_SHARED: dict[str, Any] = {"class_name": "EDMPrecond", "img_channels": 3}
CONFIGS = {
    "cifar10": _SHARED | {
        "img_resolution": 32, "label_dim": 10, "model_type": "SongUNet", "model_channels": 128,
        "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16],
    },
    "imagenet64": _SHARED | {"img_resolution": 64, "label_dim": 1000, "model_type": "DhariwalUNet"},
}  # fmt: skip
Call = Callable[[], object]


def load(name: str) -> engine.Denoiser:
    return engine.load(name) if name == "fashion-mnist" else engine.Denoiser.from_config(CONFIGS[name]).eval()


def variants(denoiser: engine.Denoiser, batch: int, dtype: torch.dtype, compiled: bool) -> dict[str, Call]:
    """One evaluation of a batch by each; all in ``dtype`` but the usual code."""
    c_noise = torch.linspace(-1, 1, batch)
    labels = torch.nn.functional.one_hot(torch.arange(batch) % denoiser.label_dim, denoiser.label_dim).float()
    plain = cast_network(copy.deepcopy(denoiser.model), dtype)
    prepared = engine.Engine(denoiser, dtype=dtype).denoiser
    x = torch.randn(batch, *denoiser.img_shape)
    x_half = x.to(dtype).contiguous(memory_format=torch.channels_last)

    def call(network: torch.nn.Module, x: Tensor) -> Call:
        return lambda: network(x, c_noise, labels)

    calls = {"usual": call(denoiser.model, x), "plain": call(plain, x_half), "engine": call(prepared.model, x_half)}
    if compiled:
        torch._inductor.config.freezing = True
        calls["compile"] = call(torch.compile(plain), x_half)
    return calls


def operations(call: Call) -> int:
    """Operations of one evaluation that do something: no views, no allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    top = [event for event in profile.events() if event.cpu_parent is None]
    idle = ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "chunk", "split", "unbind",
            "unsqueeze", "empty", "empty_like", "detach", "alias", "as_strided", "t", "narrow", "item")  # fmt: skip
    names = [event.name.removeprefix("aten::").rstrip("_") for event in top]
    unmoved = sum(event.name == "aten::to" and not event.cpu_children for event in top)
    return sum(name not in idle for name in names) - unmoved


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--network", nargs="+", default=["fashion-mnist", "cifar10"])
    arguments.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    arguments.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    arguments.add_argument("--compile", action="store_true", help="Also torch.compile with freezing: minutes.")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for name in options.network:
        denoiser = load(name)
        for dtype in options.dtype:
            for batch in options.batch:
                with torch.no_grad():
                    calls = variants(denoiser, batch, getattr(torch, dtype), options.compile)
                    times = measure(calls, torch.device("cpu"), seconds=4.0)
                    counted = {variant: operations(call) for variant, call in calls.items()}
                rows += [
                    {
                        "network": name,
                        "dtype": "float32" if variant == "usual" else dtype,
                        "batch": batch,
                        "variant": variant,
                        "ms an image": timing.p50 * 1e3 / batch,
                        "p20": timing.p20 * 1e3 / batch,
                        "p80": timing.p80 * 1e3 / batch,
                        "times usual": times["usual"].p50 / timing.p50,
                        "operations": counted[variant],
                    }
                    for variant, timing in times.items()
                ]
    notes = "Milliseconds an image and evaluation, medians of 15 interleaved rounds; the loop around it not counted."
    write("unet", torch.device("cpu"), rows, notes)


if __name__ == "__main__":
    main()
