"""`CudaCapture` and `CopyOut` against a torch.cuda that only writes down what is asked of it: the order of events."""

import gc
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from engine.graphs import CaptureError
from engine.graphs.blame import _layers
from engine.graphs.capture import CudaCapture
from engine.prepare import find_device
from engine.transfer import CopyOut, to_device

CUDA = torch.device("cuda", 0)


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.name = f"event of {stream.name}"
        self.log.append(self.name)

    def synchronize(self):
        self.log.append(f"host waits for {self.name}")


@pytest.fixture
def log(monkeypatch):
    """torch.cuda, as far as the engine uses it; ``log.current`` is the current stream."""
    found = SimpleNamespace(lines=[], free=1000, pools=0, fails=[])
    found.current = found.main = Stream(found.lines, "main")

    def new_stream(device, priority=0):
        return Stream(found.lines, "side")

    @contextmanager
    def on_stream(stream):
        before, found.current = found.current, stream
        try:
            yield
        finally:
            found.current = before

    @contextmanager
    def graph(made, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        found.lines.append(f"capture on {stream.name} in {pool}")
        before, found.current = found.current, stream
        yield
        if found.fails and pool is not None:  # as torch does: the error comes on leaving, and the stream stays
            raise found.fails.pop()
        found.free -= 300
        found.current = before

    def pool():
        found.pools += 1
        return f"pool {found.pools}"

    class Graph:
        def replay(self):
            found.lines.append("replay")

    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        clean = lambda index, pool, name=name: found.lines.append(f"{name} {index} {pool}")  # noqa: E731
        monkeypatch.setattr(torch._C, name, clean, raising=False)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *of, device: zeros(*of))
    for name, fake in {
        "Stream": new_stream,
        "Event": lambda: Event(found.lines),
        "stream": on_stream,
        "graph": graph,
        "graph_pool_handle": pool,
        "CUDAGraph": Graph,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: found.current,
        "set_stream": lambda stream: setattr(found, "current", stream),
        "device": lambda device: nullcontext(),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (found.free, 4000),
        "get_device_properties": lambda device: SimpleNamespace(total_memory=4000),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


def test_turns_follow_each_other_on_any_stream(log):
    capture = CudaCapture(CUDA)
    with capture.turn():
        log.lines.append("work")
    log.current = Stream(log.lines, "other")
    with capture.turn():
        log.lines.append("work")
    assert log.lines == [
        "work",
        "event of main",
        "side waits for event of main",
        "other waits for event of main",
        "work",
        "event of other",
        "side waits for event of other",
    ]


def test_a_turn_that_failed_is_waited_for_too(log):
    capture = CudaCapture(CUDA)
    with pytest.raises(KeyError), capture.turn():
        raise KeyError
    assert log.lines == ["event of main", "side waits for event of main"]


def test_warming_up_is_between_what_is_before_and_after(log):
    CudaCapture(CUDA).warm_up(lambda: log.lines.append(f"work on {log.current.name}"))
    assert log.lines == ["side waits for main", "work on side", "main waits for side"]
    log.lines.clear()
    with pytest.raises(KeyError), CudaCapture(CUDA).lasting():
        raise KeyError
    assert log.lines == ["side waits for main", "main waits for side"]


def test_captures_share_a_pool_while_one_of_them_lives(log):
    capture = CudaCapture(CUDA)
    graphs = [capture.capture(lambda: log.lines.append("work")) for _ in range(2)]
    graphs.pop(0)
    graphs.append(capture.capture(lambda: None))
    graphs[0].replay()
    assert log.lines[-1] == "replay"
    assert [graph.nbytes for graph in graphs] == [300, 300]
    assert all(graph.seconds > 0 for graph in graphs)
    graphs.clear()
    capture.capture(lambda: None)
    captured = [line for line in log.lines if line.startswith("capture")]
    assert captured == [f"capture on side in pool {n}" for n in (1, 1, 1, 2)]
    assert capture.budget() == 2000


def test_a_capture_that_fails_leaves_stream_allocator_and_generator_as_they_were(log):
    capture = CudaCapture(CUDA)
    log.fails = [RuntimeError("CUDA error: operation not permitted when stream is capturing")] * 2
    with pytest.raises(
        CaptureError, match="could not be captured in a CUDA graph: CUDA error: operation not permitted"
    ):
        capture.capture(lambda: None)
    assert log.current is log.main
    assert log.lines == [
        line
        for pool in ("pool 1", "pool 2")
        for line in (
            f"capture on side in {pool}",
            f"_cuda_endAllocateToPool 0 {pool}",
            f"_cuda_releasePool 0 {pool}",
            "capture on side in None",
        )
    ]
    capture.capture(lambda: None)
    assert log.lines[-1] == "capture on side in pool 3"


def test_a_pool_that_is_not_ours_to_release_stays(monkeypatch, log):
    """Torch has ended allocating to it already, or has not begun: live graphs or the failed one hold it."""

    def refused(index, pool):
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refused)
    log.fails = [RuntimeError("CUDA error: unspecified launch failure")] * 2
    with pytest.raises(CaptureError, match="unspecified launch failure"):
        CudaCapture(CUDA).capture(lambda: None)
    assert not [line for line in log.lines if "releasePool" in line]


def test_no_memory_for_a_graph_is_no_failed_capture(log):
    """Batches shrink, and are captured again, where an engine would give graphs up for good."""
    log.fails = [RuntimeError("CUDA error: out of memory")]
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA error: out of memory$"):
        CudaCapture(CUDA).capture(lambda: None)
    assert not log.fails


def test_a_capture_that_another_thread_spoilt_is_tried_again(log):
    capture = CudaCapture(CUDA)
    log.fails = [RuntimeError("CUDA error: operation failed due to a previous error during capture")]
    capture.capture(lambda: None).replay()
    assert log.current is log.main
    assert log.lines[-2:] == ["capture on side in pool 2", "replay"]


def test_no_garbage_is_collected_during_a_capture(log):
    collects = []
    CudaCapture(CUDA).capture(lambda: collects.append(gc.isenabled()))
    assert collects == [False]
    assert gc.isenabled()
    log.fails = [RuntimeError("no")] * 2
    with pytest.raises(CaptureError):
        CudaCapture(CUDA).capture(lambda: None)
    assert gc.isenabled()
    gc.disable()
    CudaCapture(CUDA).capture(lambda: None)
    assert not gc.isenabled()
    gc.enable()


def test_too_little_memory_is_told_as_such(log):
    log.fails = [torch.OutOfMemoryError("CUDA out of memory")]
    with pytest.raises(torch.OutOfMemoryError):
        CudaCapture(CUDA).capture(lambda: None)
    assert log.current is log.main


def test_copying_out_waits_for_the_current_stream_only(monkeypatch, log):
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: kept.append(stream.name))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *of, pin_memory, **named: empty(*of, **named))
    arriving = CopyOut(CUDA)(torch.arange(4.0))
    assert log.lines == ["side waits for main", "event of side"]
    assert kept == ["side"]
    assert arriving.wait().tolist() == [0, 1, 2, 3]
    assert log.lines[-1] == "host waits for event of side"


def test_what_is_sent_has_memory_of_its_own(monkeypatch):
    """Torch cannot pin one image that stands for many."""

    def pin(t):
        assert t.is_contiguous()
        return t

    sent = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, device, non_blocking: sent.append((t, device, non_blocking)))
    to_device(torch.zeros(1, 3).expand(4, 3), CUDA)
    ((t, device, non_blocking),) = sent
    assert (t.shape, device, non_blocking) == ((4, 3), CUDA, True)


def test_the_host_waits_for_a_copy_to_itself():
    """What it reads next would otherwise not be there yet."""
    asked = []

    class FromDevice:
        device = CUDA

        def to(self, device, non_blocking):
            asked.append((device.type, non_blocking))

    to_device(FromDevice(), torch.device("cpu"))
    assert asked == [("cpu", False)]


def test_the_current_device_is_meant_where_none_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert find_device("cuda") == torch.device("cuda", 2)
    assert find_device("cuda:0") == CUDA
    with pytest.raises(ValueError, match="device is 'cuda:4'; allowed: 'cpu', or one of 4 CUDA devices"):
        find_device("cuda:4")


def test_the_watch_on_layers_leaves_other_threads_alone():
    network = torch.nn.Sequential(torch.nn.Identity())
    with _layers(network) as entered:
        (enter,), (leave,) = network._forward_pre_hooks.values(), network._forward_hooks.values()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert entered == []
        assert leave() is None  # of one that was entered before there was a hook; torch takes a value for the output
        network(torch.zeros(1))
        assert entered == []
