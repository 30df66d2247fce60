"""The network: milliseconds an image and evaluation, as usually written, compiled, and as an engine prepares it.

    python -m bench.bench_unet [--network fashion-mnist cifar10 imagenet64] [--batch 1 8] [--device cuda]

"usual" is the plain module in float32 and contiguous memory; "plain" the same cast to bfloat16 and channels_last;
"compile" torch.compile of that with freezing; "engine" what `engine.Engine` runs: the evaluation replayed, by a GPU
from a CUDA graph. Weights are random but for the shipped network. Operations are those that torch's profiler sees in
one evaluation.
"""

import copy
import statistics
import time
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

import engine
from bench.harness import parser, shown_in_the_end, write
from bench.narrower import without_avx512
from bench.timing import GPU_NOTE, Call, launches, measure, on_gpu
from engine.measure import measure as measure_cost
from engine.measure import peak_bytes
from engine.networks.precision import cast_network

_SHARED: dict[str, Any] = {"class_name": "EDMPrecond", "img_channels": 3}
CONFIGS = {
    "cifar10": _SHARED | {
        "img_resolution": 32, "label_dim": 10, "model_type": "SongUNet", "model_channels": 128,
        "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16],
    },
    "imagenet64": _SHARED | {"img_resolution": 64, "label_dim": 1000, "model_type": "DhariwalUNet"},
}  # fmt: skip


def load(name: str) -> engine.Denoiser:
    """The shipped network, or one with weights of usual size: a GPU draws less power, and so runs faster, on zeros."""
    if name == "fashion-mnist":
        return engine.load(name)
    denoiser, generator = engine.Denoiser.from_config(CONFIGS[name]).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.model.parameters():
            if p.dim() > 1:
                p.normal_(std=p[0].numel() ** -0.5, generator=generator)
    return denoiser


def variants(
    denoiser: engine.Denoiser, batch: int, dtype: torch.dtype, device: torch.device, compiled: bool
) -> tuple[dict[str, Call], dict[str, float]]:
    """One evaluation of a batch by each, all in ``dtype`` but the usual code; and bytes of activations that each holds.

    An evaluation that is replayed holds its arena, and what torch allocates beside.
    """
    c_noise = torch.linspace(-1, 1, batch, device=device)
    labels = (
        torch.nn.functional.one_hot(torch.arange(batch) % denoiser.label_dim, denoiser.label_dim).float().to(device)
    )
    usual = copy.deepcopy(denoiser.model).to(device)
    plain = cast_network(copy.deepcopy(usual), dtype)
    prepared = engine.Engine(denoiser, dtype=dtype, device=device).denoiser
    x = torch.randn(batch, *denoiser.img_shape, device=device)
    x_half = x.to(dtype).contiguous(memory_format=torch.channels_last)

    def call(network: torch.nn.Module, x: Tensor) -> Call:
        return lambda: network(x, c_noise, labels)

    calls: dict[str, Call] = {"usual": call(usual, x), "plain": call(plain, x_half)}
    calls["engine"] = partial(prepared.call_network, x_half, c_noise, labels)
    for _ in range(3):  # the second is recorded on a CPU, the third makes the memory in which they are replayed
        calls["engine"]()
    held = {variant: float(peak_bytes(call, [])) for variant, call in calls.items()}
    tape = prepared.remembered and prepared.remembered.tape_for(x_half, c_noise, labels)
    if tape is not None:
        held["engine"] = peak_bytes(lambda: tape(x_half, c_noise, labels), []) + tape.nbytes
    if compiled:
        torch._inductor.config.freezing = device.type == "cpu"
        mode = "default" if device.type == "cpu" else "max-autotune-no-cudagraphs"
        calls["compile"] = call(torch.compile(plain, mode=mode), x_half)
    return calls, held


def operations(call: Call, device: torch.device) -> int:
    """Operations of one evaluation that do something: no views, no allocations; on CUDA, launches."""
    if device.type == "cuda":
        return launches(call, device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        call()
    top = [event for event in profile.events() if event.cpu_parent is None]
    idle = ("view", "reshape", "expand", "permute", "transpose", "slice", "select", "chunk", "split", "unbind",
            "unsqueeze", "empty", "empty_like", "detach", "alias", "as_strided", "t", "narrow", "item")  # fmt: skip
    names = [event.name.removeprefix("aten::").rstrip("_") for event in top]
    unmoved = sum(event.name == "aten::to" and not event.cpu_children for event in top)
    return sum(name not in idle for name in names) - unmoved


def outside(denoiser: engine.Denoiser, batch: int, dtype: torch.dtype, repeats: int) -> float:
    """The share of `Engine.sample`'s time at NFE 35 that is not the network's, on a CPU; a median."""
    made = engine.Engine(denoiser, dtype=dtype, batch_size=batch)
    evaluate, inside = made.denoiser.call_network, [0.0]

    def timed(*arguments: Tensor) -> Tensor:
        started = time.perf_counter()
        F = evaluate(*arguments)
        inside[0] += time.perf_counter() - started
        return F

    made.denoiser.call_network = timed  # type: ignore[method-assign]
    shares = []
    for _ in range(repeats + 1):
        started, inside[0] = time.perf_counter(), 0.0
        made.sample(seeds=range(batch), class_labels=1)
        shares.append(1 - inside[0] / (time.perf_counter() - started))
    return statistics.median(shares[1:])


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--network", nargs="+", default=["fashion-mnist", "cifar10"])
    arguments.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    arguments.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    arguments.add_argument("--compile", action="store_true", help="Also torch.compile with freezing: minutes.")
    arguments.add_argument("--seconds", type=float, default=4.0, help="For each variant.")
    arguments.add_argument("--avx2", action="store_true", help="As if the processor had no AVX-512; on a CPU.")
    options = arguments.parse_args()
    device = torch.device(options.device)
    if options.avx2:
        without_avx512()
    if options.threads:
        torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # "float32" is to mean that
    notes = (
        "Milliseconds an image and evaluation, medians of 15 interleaved rounds. TFLOP/s: of the whole evaluation. MB: "
        "the most activations alive at once, an image. outside: the share of Engine.sample's time at NFE 35 that is "
        f"not the network's. {GPU_NOTE if device.type == 'cuda' else ''}"
        f"{'As if the processor had AVX2 alone (bench/narrower.py).' if options.avx2 else ''}"
    ).strip()
    rows: list[dict[str, Any]] = []
    others = [] if "fashion-mnist" in options.network else options.network  # files of their own
    prefix = "-".join(["unet", *others])
    label = "avx2" if options.avx2 else ""
    save = partial(write, "unet", device, rows, notes, options.results, prefix=prefix, label=label)
    with shown_in_the_end(save):
        for name in options.network:
            denoiser = load(name)
            for dtype in options.dtype:
                for batch in options.batch:
                    rows += measured(name, denoiser, dtype, batch, device, options)
                    save(show=False)


def measured(
    name: str, denoiser: engine.Denoiser, dtype: str, batch: int, device: torch.device, options: Any
) -> list[dict[str, Any]]:
    kind = getattr(torch, dtype)
    flops = measure_cost(denoiser).flops
    with torch.no_grad():
        calls, held = variants(denoiser, batch, kind, device, options.compile)
        times = measure(calls, device, seconds=options.seconds)
        counted = {variant: operations(call, device) for variant, call in calls.items()}
    loop = outside(denoiser, batch, kind, 3) if device.type == "cpu" and name != "imagenet64" else None
    return [
        {
            "network": name,
            "dtype": "float32" if variant == "usual" else dtype,
            "batch": batch,
            "variant": variant,
            "ms an image": timing.p50 * 1e3 / batch,
            "p20": timing.p20 * 1e3 / batch,
            "p80": timing.p80 * 1e3 / batch,
            "times usual": times["usual"].p50 / timing.p50,
            "TFLOP/s": flops * batch / timing.p50 / 1e12,
            "operations": counted[variant],
            "MB": held[variant] / 1e6 / batch if variant in held else "",
            "outside": f"{loop:.2%}" if loop is not None and variant == "engine" else "",
            **on_gpu(timing, 1e3 / batch, "ms"),
        }
        for variant, timing in times.items()
    ]


if __name__ == "__main__":
    main()
