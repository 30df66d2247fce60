"""What test_pretended_device.py runs in a process of its own, on the pretended device: that it finds what it is there
for, and the benchmarks of a GPU.
"""

import contextlib
import gc
import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

import engine
from bench import bench_advance, bench_ops, bench_sample, bench_unet, compiled, device_rows, harness, profile_sample
from bench import timing as bench_timing
from engine.graphs.capture import CudaCapture
from engine.transfer import Arriving, CopyOut, to_device
from tests.helpers import small_unet
from tests.pretend.clocks import Device, Race
from tests.pretend.tensors import OnDevice

SIDE = torch.cuda.Stream()


def test_a_tensor_knows_its_device_and_mixes_with_no_other():
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert str(x.device) == "cuda:0"
    assert (x.t() @ x).sum().item() == 153
    assert torch.equal((x + torch.tensor(1.0)).cpu(), torch.arange(1.0, 7).view(2, 3))
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(1, device="cuda:1")


def test_a_stream_must_wait_for_what_it_reads():
    x = torch.ones(3, device="cuda")
    with torch.cuda.stream(SIDE), pytest.raises(Race, match="reads what stream 0 may still write"):
        x + 1
    SIDE.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(SIDE):
        x.add_(1)
        done = torch.cuda.Event()
        done.record()
    with pytest.raises(Race, match="writes what stream"):
        x.zero_()
    torch.cuda.current_stream().wait_event(done)
    x.zero_()


def test_the_host_must_wait_for_what_arrives():
    x, host = torch.ones(3, device="cuda"), torch.empty(3, pin_memory=True)
    host.copy_(x, non_blocking=True)
    with pytest.raises(Race, match="reads what stream 0 may still write"):
        host + 1
    torch.cuda.synchronize()
    assert (host + 1).tolist() == [2, 2, 2]
    host.copy_(x, non_blocking=True)
    with pytest.raises(Race, match="reads what stream 0 may still write"):
        host.tolist()
    torch.cuda.synchronize()
    x.copy_(host, non_blocking=True)
    with pytest.raises(Race, match="writes what stream 0 may still read"):
        host.zero_()
    torch.cuda.synchronize()


def test_memory_is_kept_for_the_streams_that_use_it():
    for kept in (False, True):
        x = torch.ones(3, device="cuda")
        SIDE.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(SIDE):
            x.neg()
        if kept:
            x.record_stream(SIDE)
        del x
        gc.collect()
        assert bool(Device.it.errors) is not kept
        Device.it.errors.clear()


def test_what_makes_the_host_wait_is_refused_when_it_must_not():
    x, pinned = torch.ones(3, device="cuda"), torch.ones(3).pin_memory()
    waits = [x.tolist, x.cpu, lambda: x[x > 0], lambda: torch.ones(3).to("cuda"), torch.cuda.synchronize]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for wait in waits:
            with pytest.raises(RuntimeError, match="synchronizing"):
                wait()
        moved = to_device(pinned, x.device) + x[torch.zeros(1, dtype=torch.int64, device="cuda")]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert moved.tolist() == [2, 2, 2]


def test_a_graph_does_again_what_was_captured_and_nothing_before():
    x, graph = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x + 1
        x.add_(y)
    assert x.tolist() == [0, 0, 0]
    assert y.isnan().all()
    for expected in (1, 3, 7):
        graph.replay()
        assert x.tolist() == [expected] * 3
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        x.tolist()


def _no_turn(_):
    return contextlib.nullcontext()


@contextlib.contextmanager
def _beside(self):
    with torch.cuda.stream(self._stream):
        yield


def _copied_at_once(self, t):
    host, there = torch.empty(t.shape, dtype=t.dtype, pin_memory=True), torch.cuda.Event()
    with torch.cuda.stream(self.stream):
        host.copy_(t, non_blocking=True)
        there.record()
    t.record_stream(self.stream)
    return Arriving(host, there)


WITHOUT = {
    "the copy waiting for the images": (CopyOut, "__call__", _copied_at_once),
    "the host waiting for the copy": (Arriving, "wait", lambda self: self.tensor),
    "the images being kept for the copy": (OnDevice, "record_stream", lambda self, stream: None),
    "turns": (CudaCapture, "turn", _no_turn),
    "the side stream waiting": (CudaCapture, "_beside", _beside),
    "nothing": None,
}


@pytest.mark.parametrize("what", WITHOUT)
def test_an_engine_without_one_of_its_waits_is_found_out(monkeypatch, what):
    if WITHOUT[what] is not None:
        monkeypatch.setattr(*WITHOUT[what])
    errors = []

    def draw():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(3):
                    for _, images in made.stream_uint8(seeds=range(12), class_labels=1):
                        images.sum()
        except Race as race:
            errors.append(race)

    try:
        made = engine.Engine(
            small_unet(3), sampler=engine.samplers.edm(2), device="cuda", dtype=torch.bfloat16, batch_size=4
        )
        threads = [threading.Thread(target=draw) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except Race as race:
        errors.append(race)
    gc.collect()
    errors += Device.it.errors
    Device.it.errors.clear()
    assert bool(errors) is (WITHOUT[what] is not None)


class Profile:
    """torch.profiler.profile of the device: an event of a microsecond for everything it does."""

    def __init__(self, activities, acc_events):
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        self.found = []

    def __enter__(self):
        self.access = Device.it.access
        Device.it.access = self.watched
        return self

    def watched(self, touched, written):
        now = time.perf_counter() * 1e6
        when = SimpleNamespace(start=now, end=now + 1)
        self.found.append(SimpleNamespace(device_type=DeviceType.CUDA, name="kernel", time_range=when))
        return self.access(touched, written)

    def __exit__(self, *_):
        del Device.it.access

    def events(self):
        return self.found


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Where benchmarks write, here; and what they need of torch that is not there."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]


def test_bench_sample_runs(monkeypatch, results):
    monkeypatch.setattr(device_rows, "ceilings", lambda device: [{"what": "nothing", "measured": 1.0, "unit": ""}])
    monkeypatch.setattr(bench_sample, "load", lambda name: small_unet(3))
    monkeypatch.setattr(compiled, "run", lambda arguments, seconds: bench_sample.main(arguments))
    given = "--device cuda --network cifar10:2 --rounds 1 --seconds 0.1 --steps 2 --job 4 --compile-seconds 9"
    bench_sample.main(given.split())
    (found,) = results()
    assert [row["variant"] for row in found["rows"]][-2:] == ["compile reduce-overhead", "compile max-autotune"]
    assert len(found["rows"]) >= 7
    assert not [row["note"] for row in found["rows"] if row["note"] and "not installed" not in row["note"]]
    (device,) = found["sections"]["The engine on the device"]
    assert device["captured"] == "loop"
    assert device["job images"] == 4


@pytest.mark.parametrize("graph", ["auto", "step"])
def test_profile_sample_runs(monkeypatch, results, graph):
    monkeypatch.setattr(profile_sample, "load", lambda name: small_unet(3))
    profile_sample.main(f"--device cuda --batch 2 --batches 2 --steps 2 --graph {graph}".split())
    (found,) = results()
    assert found["rows"][0]["launches per step"] > 10


GIVEN = {
    bench_unet: "--network small --batch 2 --dtype bfloat16 --seconds 0.1",
    bench_advance: "--size 1x3x4x4 --no-compile --seconds 0.1",
    bench_ops: "--network small --batch 1 --seconds 0.001",
}


@pytest.mark.parametrize("module", GIVEN)
def test_other_benchmarks_run(monkeypatch, results, module):
    monkeypatch.setattr(bench_unet, "load", lambda name: small_unet(3))
    monkeypatch.setattr(bench_advance, "BACKENDS", [each for each in bench_advance.BACKENDS if each.name == "cuda"])
    monkeypatch.setattr(bench_advance, "ROWS", {"CORRECT": bench_advance.ROWS["CORRECT"]})
    # Of the operations one shape each, whose kernels the interpreter can compute, if slowly.
    monkeypatch.setattr(bench_ops, "load", lambda name: None)
    monkeypatch.setattr(bench_ops, "shapes", lambda denoiser: ({(16, 16, 4, 4, 3): 5}, {(16, 4, 4): 7}))
    monkeypatch.setattr(bench_ops.conv, "TILES", bench_ops.conv.TILES[-1:])
    monkeypatch.setattr(bench_timing, "_ROUNDS", 2)
    monkeypatch.setattr(torch.cuda.get_device_properties(), "L2_cache_size", 12_000, raising=False)
    monkeypatch.setattr("sys.argv", [module.__name__, "--device", "cuda", *GIVEN[module].split()])
    module.main()
    (found,) = results()
    assert len(found["rows"]) >= 2
    assert {row["timed"] for row in found["rows"]} == {"graph"}


def test_a_call_is_timed_by_its_graph_or_by_the_host_with_the_reason():
    x, made = torch.zeros(3, device="cuda"), {"short": 0, "waits": 0}

    def call(name):
        made[name] += 1
        x.add_(1)
        return x.sum().item() if name == "waits" else None

    found = bench_timing.measure({name: lambda name=name: call(name) for name in made}, x.device, seconds=0.01)
    assert (found["short"].way, found["waits"].way.partition(" ")[0]) == ("graph", "host:")
    assert "_local_scalar_dense" in found["waits"].way
    assert all(timing.p20 <= timing.p50 <= timing.p80 for timing in found.values())
    assert all(timing.host > 0 for timing in found.values())
    assert x[0].item() > sum(made.values())  # replays, in which no Python runs
