"""When the loop is captured, what is kept and what is refused, and who is served; remembered work stands for graphs."""

import gc
import itertools
import random
import threading
import warnings
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import engine
from engine import Denoiser
from engine.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance, Guidance
from engine.preconditioning import EDM
from tests.helpers import wavy
from tests.replay import Replay
from tests.unit.test_graphs import HEUN, SHAPE, of, same


def test_sigmas_churn_weights_and_labels_are_data(replay):
    """One capture serves them all."""
    prepared = of("loop", 3, guidance=ClassifierFree(2.0))
    prepared.sample(seeds=range(4), class_labels=0)
    assert (replay.captured, replay.replayed) == (1, 0)  # the batch that warmed it up is drawn
    for changed in (
        {"sampler": engine.samplers.edm(4, sigma_min=0.01, sigma_max=20, rho=3)},
        {"sampler": engine.samplers.edm(4, S_churn=1, S_tmin=0.1, S_tmax=9)},
        {"sampler": engine.samplers.edm(4)},
        {"guidance": ClassifierFree(5.0)},
        {"guidance": ClassifierFree([2.0, 3.0, 4.0, 5.0], negative=2)},
        {"class_labels": [2, 1, 0, 1]},
        {"seeds": range(9, 13)},
    ):
        asked = {"seeds": range(4), "class_labels": 0} | changed
        drawn = prepared.sample(**asked)
        assert torch.equal(drawn, of(label_dim=3, guidance=ClassifierFree(2.0)).sample(**asked))
    assert (replay.captured, replay.replayed) == (1, 7)
    prepared.sample(seeds=range(4), class_labels=0, sampler=engine.samplers.edm(5))
    assert replay.captured == 2  # another number of evaluations is another loop


def test_a_step_graph_serves_any_number_of_evaluations(replay):
    prepared = of("step")
    for steps in (3, 2, 8):
        sampler = engine.samplers.edm(steps)
        same(prepared, options={"sampler": sampler}, seeds=range(4), sampler=sampler)
    assert len(prepared.captures) == 2  # tables of up to 7 rows, and of up to 31
    assert all(each.graphs == 1 for each in prepared.captures)


def test_auto_captures_what_comes_twice(replay):
    prepared = of()
    assert prepared.captures == ()
    prepared = of("auto")
    prepared.sample(seeds=range(4))
    assert (replay.warmed, replay.captured) == (1, 0)
    prepared.sample(seeds=range(4))
    assert (replay.warmed, replay.captured, replay.replayed) == (1, 1, 1)
    (loop,) = prepared.captures
    assert (loop.kind, loop.batch, loop.graphs, loop.seconds, loop.batches) == ("loop", 4, 1, 0.25, 2)
    assert loop.nbytes > 4 * 144 * 8


def test_auto_draws_many_evaluations_step_by_step(replay):
    long = engine.samplers.edm(steps=130, solver="euler")
    prepared = of("auto", sampler=long)
    prepared.sample(seeds=range(2))
    prepared.sample(seeds=range(2))
    assert {each.kind for each in prepared.captures} == {"step"}
    assert torch.equal(prepared.sample(seeds=range(2)), of(sampler=long).sample(seeds=range(2)))


def test_what_was_used_last_is_kept(monkeypatch):
    """Within the budget: three graphs of 100 MB do not fit into 250."""
    capture = Replay(nbytes=100 << 20)
    monkeypatch.setitem(engine.graphs.capture.CAPTURES, "cpu", lambda device: capture)
    prepared = of("loop", buckets=[1, 2, 4], batch_size=8, graph_memory=250 << 20)
    for count in (1, 2, 1, 4):
        prepared.sample(seeds=range(count))
    assert [each.batch for each in prepared.captures] == [1, 4]
    prepared.sample(seeds=range(2))
    assert [each.batch for each in prepared.captures] == [4, 2]
    assert capture.captured == 4
    small = of("loop", graph_memory=0)
    small.sample(seeds=range(3))
    assert len(small.captures) == 1


class Waiting(nn.Module):
    """A network that reads a value on the host; what: how."""

    def __init__(self, what):
        super().__init__()
        self.inner = Inner(what)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, c_noise):
        return self.inner(x) * self.gain


class Inner(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


WAYS = {
    "aten::_local_scalar_dense": lambda x: x * x.abs().max().item(),
    "aten::nonzero": lambda x: x * len(torch.nonzero(x)),
    "aten::index": lambda x: x + x[x > 0].sum(),
    "aten::equal": lambda x: x if torch.equal(x, x) else -x,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_network_that_waits_for_the_device_is_named(replay, name):
    denoiser = Denoiser(Waiting(WAYS[name]), EDM(), img_shape=SHAPE)
    refused = engine.Engine(denoiser, sampler=HEUN, graph="loop")
    with pytest.raises(engine.CaptureError, match=f"{name} in model.inner .Inner. waits for .*; allowed: graph='off'"):
        refused.sample(seeds=range(2))
    assert replay.captured == 0
    expected = engine.Engine(denoiser, sampler=HEUN, graph="off").sample(seeds=range(2))
    lenient = engine.Engine(denoiser, sampler=HEUN)
    assert torch.equal(lenient.sample(seeds=range(2)), expected)
    with pytest.warns(RuntimeWarning, match=f"{name}.*runs without graphs"):
        assert torch.equal(lenient.sample(seeds=range(2)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(lenient.sample(seeds=range(2)), expected)


def test_indexing_by_numbers_does_not_wait(replay):
    denoiser = Denoiser(Waiting(lambda x: x[torch.arange(len(x))]), EDM(), img_shape=SHAPE)
    engine.Engine(denoiser, sampler=HEUN, graph="loop").sample(seeds=range(2))
    assert replay.captured == 1


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(ValueError, match=r"graph is 'loop'; allowed here: 'auto', 'off': the device is cpu"):
        of("loop")
    with pytest.raises(ValueError, match=r"graph is 'graph'; allowed: auto, loop, step, off"):
        of("graph")
    with pytest.raises(ValueError, match=r"graph_memory is -1; allowed: a number of bytes"):
        of(graph_memory=-1)
    with pytest.raises(ValueError, match=r"buckets is \[0\]; allowed: integers from 1 to"):
        of(buckets=[0])
    assert of("auto").captures == ()


def test_the_reference_reads_values_on_the_host(replay):
    with pytest.raises(ValueError, match="the reference backend reads values on the host"):
        of("loop", backend="reference")


def test_the_adaptive_sampler_is_in_no_graph(replay):
    with pytest.raises(ValueError, match="graph is 'step'; allowed: 'auto', 'off', with the adaptive"):
        of("step").sample(seeds=[1], sampler=engine.samplers.rk45(0.1, 0.1))
    of("auto").sample(seeds=[1], sampler=engine.samplers.rk45(0.1, 0.1))
    assert replay.warmed == 0


def test_calls_from_several_threads_are_served_in_turn(replay):
    """`Replay.turn` refuses two at once; every image is that of its seeds, whoever else draws."""
    prepared, found, errors = of("auto"), {}, []
    expected = {seed: of().sample(seeds=[seed, seed + 50]) for seed in range(12)}

    def draw(seed):
        try:
            found[seed] = prepared.sample(seeds=[seed, seed + 50])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=draw, args=[seed]) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(found[seed], expected[seed]) for seed in expected)
    assert replay.captured == 1


def test_streams_of_one_engine_may_be_read_alternately(replay):
    prepared = of("loop", batch_size=2)
    streams = [prepared.stream(seeds=range(start, start + 6)) for start in (0, 10)]
    drawn = [[], []]
    for _ in range(3):
        for stream, images in zip(streams, drawn, strict=True):
            images.append(next(stream)[1])
    for images, start in zip(drawn, (0, 10), strict=True):
        assert torch.equal(torch.cat(images), of(batch_size=2).sample(seeds=range(start, start + 6)))


@pytest.mark.parametrize("graph", ["loop", "step"])
def test_what_is_let_go_is_freed_at_once(replay, graph):
    """Not when the garbage collector comes by: on a GPU it is memory that the next batch needs."""
    prepared = of(graph, graph_memory=0)
    gc.collect()
    gc.disable()
    try:
        for count in (4, 3):
            prepared.sample(seeds=range(count))
        (entry,) = prepared._launcher.captured._entries.values()
        buffers, kept = weakref.ref(entry.buffers), weakref.ref(prepared.denoiser)
        del entry
        prepared.sample(seeds=range(2), callback=print if graph == "step" else None)
        assert buffers() is None
        del prepared
        assert kept() is None
    finally:
        gc.enable()


def test_many_samplers_guidances_and_noises_through_one_engine(replay):
    """In any order, each as an engine without graphs draws it: nothing of one is in another's graph."""
    samplers = engine.samplers
    all_of_them = [samplers.edm(4), HEUN, samplers.dpmpp_2m(7), samplers.unipc(7), samplers.ddpm(7)]
    all_of_them += [samplers.edm(8, solver="euler"), samplers.langevin(2)]

    def gradient(scale):
        return lambda x, sigma, labels: -scale * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    guidances = [
        None,
        ClassifierFree(2.0),
        ClassifierFree([1.0, 2.0, 3.0, 1.0], interval=(0.1, 20)),
        ClassifierFree(3.0, interval=(1, 5)),
        ClassifierFree(3.0, negative=1, rescale=0.7),
        AutoGuidance(2.0, guide=wavy(EDM(), SHAPE, 3)),
        AutoGuidance(2.0, guide=small(0.2)),
        ClassifierGuidance(0.5, gradient=gradient(0.1)),
        ClassifierGuidance(0.5, gradient=gradient(0.3)),
        Shifted(1.5, shift=0.1),
        Shifted(1.5, shift=0.2),
    ]
    combinations = list(itertools.product(all_of_them, guidances, [None, torch.float32, torch.float64]))
    random.Random(1).shuffle(combinations)
    for graph in ("auto", "loop", "step"):
        prepared, eager = of(graph, 3), of(label_dim=3)
        for sampler, guidance, latents in combinations[:60] * 2:
            asked = {"sampler": sampler, "guidance": guidance, "class_labels": [0, 1, 2, 0], "seeds": range(4)}
            if latents is not None:
                asked["latents"] = torch.randn(4, *SHAPE, dtype=latents)
            assert torch.equal(prepared.sample(**asked), eager.sample(**asked)), (graph, sampler, guidance, latents)


def small(gain):
    denoiser = wavy(EDM(), SHAPE, 3)
    denoiser.model.gain.data.fill_(gain)
    return denoiser


@dataclass(frozen=True)
class Shifted(Guidance):
    """A user's own kind, which says nothing of graphs."""

    shift: float = 0.0

    def check(self, denoiser):
        pass

    def evaluate(self, denoiser, net_in, c_noise, labels, level):
        F = denoiser.call_network(net_in, c_noise, labels)
        return F, F + self.shift


def test_a_float32_rerun_has_the_guide_in_float32(replay):
    computed_in = []

    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(60000.0))

        @property
        def dtype(self):
            return self.scale.dtype

        def forward(self, x, c_noise):
            computed_in.append(self.scale.dtype)
            return (x * self.scale * 1e-4) * (self.scale / 60000) * (60000.0 if x.dtype == torch.float16 else 1e-4)

    guide = Denoiser(Overflowing(), EDM(), img_shape=SHAPE)
    options = {"dtype": torch.float16, "on_nonfinite": "rerun", "guidance": AutoGuidance(2.0, guide=guide)}
    for graph in ("off", "loop"):
        with pytest.warns(RuntimeWarning, match=r"layer guide|first in"):
            drawn = of(graph, **options).sample(seeds=range(4))
        assert torch.isfinite(drawn).all()
        assert computed_in[-1] == torch.float32


def test_an_engine_hands_out_what_is_drawn_before_it_raises(replay):
    """With a batch ahead, the one before the batch that fails is still the caller's."""
    prepared = of("loop", batch_size=2)
    stream = prepared.stream(seeds=range(6), batches=iter([0, 7]))
    assert next(stream)[0] == (0, 1)
    with pytest.raises(ValueError, match="batches contains 7; allowed: 0 to 2"):
        next(stream)
    for wrong, message in (([5], "batches contains 5"), (["a"], "batches contains 'a'"), (3, "batches is 3; allowed")):
        with pytest.raises(ValueError, match=message):
            prepared.stream(seeds=range(6), batches=wrong)


def test_plans_are_made_once_by_any_thread(replay):
    prepared, errors = of("auto"), []

    def ask(first):
        try:
            for i in range(200):
                prepared.plans(engine.samplers.edm(2, rho=1 + (first + i) % 40))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(prepared.plans._plans) == 16
    assert prepared.plans(HEUN) is prepared.plans(engine.samplers.edm(4, S_churn=2, S_noise=1.003))
