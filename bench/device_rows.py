"""What the whole takes beside the network's kernels, how busy a GPU is over a job, and what it could do at best."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from bench.targets import BUSY, OUTSIDE
from bench.timeline import busy_ns
from bench.timing import copy_call, measure
from bench.traces import from_torch
from bench.variants import Prepared, Situation
from engine.graphs.capture import CudaCapture


def network_alone(situation: Situation, prepared: Prepared) -> Any:
    """The prepared network's evaluations of one batch, and nothing else, in one CUDA graph: what replays it."""
    assert prepared.made is not None
    net, device, batch = prepared.made.denoiser, situation.device, situation.batch
    x = torch.randn(batch, net.net_channels, *net.img_shape[1:], device=device).to(situation.dtype)
    x, c_noise = x.contiguous(memory_format=torch.channels_last), torch.zeros(batch, device=device)
    labels = torch.zeros(batch, net.label_dim, device=device) if net.label_dim else None

    @torch.no_grad()
    def work() -> None:
        for _ in range(situation.nfe):
            net.call_network(x, c_noise, labels)

    capture = CudaCapture(device)
    capture.warm_up(work)
    graph = capture.capture(work)

    def replay(_: Any = (x, c_noise, labels)) -> None:  # which must stay where the graph reads them
        graph.replay()

    return replay


@dataclass(frozen=True)
class Outside:
    """Seconds of a batch drawn by a call of its own, in a stream of several, and of the network's evaluations alone;
    the shares [%] of the first two that are not the network's. Medians over rounds, of the shares too."""

    call: float
    streamed: float
    network: float
    call_share: float
    streamed_share: float


def outside(situation: Situation, prepared: Prepared, rounds: int, seconds: float) -> Outside:
    """The three in turn, by the host's clock from a device at rest to a device at rest. After the second round none
    begins when so many seconds have passed."""
    alone, several = network_alone(situation, prepared), 8 if situation.batch <= 8 else 2
    stream = lambda: _draw(situation, prepared, several * situation.batch)  # noqa: E731
    found: list[tuple[float, ...]] = []
    spent = 0.0
    while len(found) <= rounds and (len(found) <= 2 or spent < seconds):
        call, streamed, network = (_seconds(work, situation.device) for work in (prepared.draw, stream, alone))
        shares = (100 * (1 - network * count / whole) for count, whole in ((1, call), (several, streamed)))
        found.append((call, streamed / several, network, *shares))
        spent += call + streamed + network
    return Outside(*(median(each) for each in zip(*found[1:], strict=True)))


def job(situation: Situation, prepared: Prepared, images: int, profiled: int) -> dict[str, Any]:
    """A job of so many images by the host's clock; how busy the GPU is, by the profile of ``profiled`` images."""
    seconds = _seconds(lambda: _draw(situation, prepared, images), situation.device)
    timeline = from_torch(lambda: _draw(situation, prepared, profiled), situation.device)
    busy, batches = busy_ns(timeline.spans) / 1e9, -(-profiled // situation.batch)
    evaluations = batches * situation.nfe
    return {
        "job images": images,
        "job images/s": images / seconds,
        BUSY: 100 * busy / (timeline.window / 1e9),
        # Without the profiler's own cost: the kernels' time of a batch, as often as the job has batches.
        "kernels of job %": 100 * busy / batches * -(-images // situation.batch) / seconds,
        "profiled images": profiled,
        "launches per step": len(timeline.spans) / evaluations,
    }


EMPTY_JOB = {
    "job images": "",
    "job images/s": "",
    BUSY: "",
    "kernels of job %": "",
    "profiled images": "",
    "launches per step": "",
}


def row(situation: Situation, prepared: Prepared, rounds: int, seconds: float, images: int) -> dict[str, Any]:
    """The device's row of one situation. rounds, seconds: see `outside`. images: of the job, 0 for none."""
    assert prepared.made is not None
    found = outside(situation, prepared, rounds, seconds)
    loops = prepared.made.captures
    drawn = job(situation, prepared, images, min(images, 4 * situation.batch)) if images else EMPTY_JOB
    return {
        "network": situation.network,
        "dtype": situation.half,
        "batch": situation.batch,
        "NFE": situation.nfe,
        "ms a batch": found.call * 1e3,
        "ms a batch, streamed": found.streamed * 1e3,
        "ms, network alone": found.network * 1e3,
        OUTSIDE: found.call_share,
        "outside, streamed %": found.streamed_share,
        **drawn,
        "captured": ", ".join(loop.kind for loop in loops) or "nothing",
        "capture s": sum(loop.seconds for loop in loops),
        "captured MiB": sum(loop.nbytes for loop in loops) / 2**20,
    }


def ceilings(device: torch.device) -> list[dict[str, Any]]:
    """What this GPU does at best, by torch: a large bfloat16 matrix product, and a copy of 1 GiB."""
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy, moved = copy_call(2**30, device)
    times = measure({"product": lambda: a @ b, "copy": copy}, device, seconds=1.0)
    return [
        {"what": f"bfloat16 product of {size} x {size}", "measured": 2 * size**3 / times["product"].p50 / 1e12,
         "unit": "TFLOP/s"},
        {"what": "copy of 1 GiB, read and written", "measured": moved / times["copy"].p50 / 1e9, "unit": "GB/s"},
    ]  # fmt: skip


def _draw(situation: Situation, prepared: Prepared, count: int) -> None:
    assert prepared.made is not None
    labels = 1 if situation.denoiser.label_dim else None
    for _ in prepared.made.stream_uint8(seeds=range(count), class_labels=labels):
        pass


def _seconds(call: Any, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started
