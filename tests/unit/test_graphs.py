"""The captured loop, where work that is remembered stands for CUDA graphs: what is captured, when, and with which bits.

tests/gpu/test_graphs.py runs the same engines with real ones.
"""

import gc
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn

import engine
from engine import Denoiser
from engine.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance
from engine.preconditioning import EDM
from tests.helpers import small_unet, wavy
from tests.replay import Replay, replay  # noqa: F401 (a fixture)

SHAPE = (3, 8, 6)
HEUN = engine.samplers.edm(4, S_churn=2, S_noise=1.003)
MODES = ("auto", "loop", "step")


def of(graph="off", label_dim=0, **options):
    return engine.Engine(wavy(EDM(), SHAPE, label_dim), graph=graph, **({"sampler": HEUN, "batch_size": 4} | options))


def same(prepared, label_dim=0, options=(), **asked):
    """Drawn twice, the second time from graphs: the bits of an engine without any."""
    expected = of(label_dim=label_dim, **dict(options)).sample(**asked)
    for _ in range(2):
        assert torch.equal(prepared.sample(**asked), expected)


@pytest.mark.parametrize("graph", MODES)
@pytest.mark.parametrize(
    "sampler",
    [HEUN, engine.samplers.edm(3), engine.samplers.dpmpp_2m(4), engine.samplers.ddpm(3), engine.samplers.langevin(3)],
    ids=lambda sampler: str(sampler)[:24],
)
def test_graphs_give_the_bits_of_the_eager_loop(replay, graph, sampler):  # noqa: F811
    prepared = of(graph, sampler=sampler)
    same(prepared, options={"sampler": sampler}, seeds=range(4))
    assert replay.replayed > 0
    others = prepared.sample(seeds=range(4, 8))
    assert torch.equal(others, of(sampler=sampler).sample(seeds=range(4, 8)))
    assert not torch.equal(others, prepared.sample(seeds=range(4)))


@pytest.mark.parametrize("graph", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_unet_in_every_dtype(replay, graph, dtype):  # noqa: F811
    options = {"sampler": engine.samplers.edm(2), "dtype": dtype, "batch_size": 3}
    denoiser = small_unet(label_dim=2)
    prepared, plain = (engine.Engine(denoiser, graph=g, **options) for g in (graph, "off"))
    for _ in range(2):
        drawn = prepared.sample(seeds=range(3), class_labels=1)
        assert torch.equal(drawn, plain.sample(seeds=range(3), class_labels=1))


@pytest.mark.parametrize("graph", MODES)
@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFree(2.0),
        ClassifierFree([1.0, 1.5, 3.0, 7.0], interval=(0.1, 20)),
        ClassifierFree(3.0, negative=1, rescale=0.7),
        AutoGuidance(2.0, guide=wavy(EDM(), SHAPE, 3)),
        ClassifierGuidance(0.5, gradient=lambda x, sigma, labels: -x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)),
    ],
    ids=lambda g: f"{type(g).__name__}-{g.weight}",
)
def test_guidance(replay, graph, guidance):  # noqa: F811
    options = {"guidance": guidance}
    same(of(graph, 3, **options), 3, options, seeds=range(4), class_labels=[0, 1, 2, 0])


@pytest.mark.parametrize("graph", MODES)
def test_every_kind_of_noise_and_known_pixels(replay, graph):  # noqa: F811
    prepared = of(graph)
    image = torch.linspace(-1, 1, 4 * 144).reshape(4, *SHAPE)
    mask = torch.zeros(4, *SHAPE, dtype=torch.bool)
    mask[..., :3] = True
    for asked in (
        {"noise": "torch"},
        {"noise": torch.randn(4, 4, *SHAPE), "latents": torch.randn(4, *SHAPE)},
        {"image": image, "mask": mask},
        {"offset_noise": 0.1},
    ):
        seeds = {} if "latents" in asked else {"seeds": range(4)}
        same(prepared, **asked, **seeds)
    image = image.flip(0)
    same(prepared, image=image, mask=mask, seeds=range(4))


def test_sigmas_churn_weights_and_labels_are_data(replay):  # noqa: F811
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


def test_a_step_graph_serves_any_number_of_evaluations(replay):  # noqa: F811
    prepared = of("step")
    for steps in (3, 2, 8):
        sampler = engine.samplers.edm(steps)
        same(prepared, options={"sampler": sampler}, seeds=range(4), sampler=sampler)
    assert len(prepared.captures) == 2  # tables of up to 7 rows, and of up to 31
    assert all(each.graphs == 1 for each in prepared.captures)


@pytest.mark.parametrize("graph", ["loop", "step"])
def test_a_check_after_the_last_row_reads_within_the_table(replay, graph):  # noqa: F811
    """Who looks at the last evaluation only has a step graph of its own, checked when it has been run there."""
    guidance = ClassifierGuidance(0.5, gradient=lambda x, sigma, labels: -x / (1 + sigma.reshape(-1, 1, 1, 1)))
    for steps in (1, 2, 4, 8):  # tables of 2, 4, 8 and 16 rows
        options = {"guidance": guidance, "sampler": engine.samplers.edm(steps), "batch_size": 1}
        drawn = of(graph, **options).sample(seeds=[1], callback=lambda progress: None, callback_every=99)
        assert torch.equal(drawn, of(**options).sample(seeds=[1]))


@pytest.mark.parametrize("graph", MODES)
def test_calls_in_and_out_of_inference_mode(replay, graph):  # noqa: F811
    prepared, expected = of(graph), of().sample(seeds=range(4))
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(prepared.sample(seeds=range(4)), expected)
        assert torch.equal(prepared.sample(seeds=range(4), callback=lambda progress: None), expected)
        assert torch.equal(prepared.sample(seeds=range(4)), expected)


def test_auto_captures_what_comes_twice(replay):  # noqa: F811
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


def test_auto_draws_many_evaluations_step_by_step(replay):  # noqa: F811
    long = engine.samplers.edm(steps=130, solver="euler")
    prepared = of("auto", sampler=long)
    prepared.sample(seeds=range(2))
    prepared.sample(seeds=range(2))
    assert {each.kind for each in prepared.captures} == {"step"}
    assert torch.equal(prepared.sample(seeds=range(2)), of(sampler=long).sample(seeds=range(2)))


def test_the_same_calls_are_captured_as_are_run(monkeypatch, replay):  # noqa: F811
    """The sequence of operations of a loop, as each way of running it asks for them."""
    asked = []
    prepared = {graph: of(graph, sampler=engine.samplers.edm(2)) for graph in ("off", "loop", "step")}
    for each in prepared.values():
        advance, evaluate = each.backend.advance, each.denoiser.call_network

        def recorded_advance(F, state, k, G=None, advance=advance):
            asked.append(("advance", int(state.base_row[0]) + k, F is None))
            advance(F, state, k, G)

        def recorded_network(*of_network, evaluate=evaluate):
            asked.append(("network", tuple(of_network[0].shape)))
            return evaluate(*of_network)

        object.__setattr__(each, "backend", type(each.backend)("cpu", recorded_advance, lambda *_: []))
        monkeypatch.setattr(each.denoiser, "call_network", recorded_network)
    sequences = {}
    for graph, each in prepared.items():
        each.sample(seeds=range(4))
        asked.clear()
        each.sample(seeds=range(4))
        sequences[graph] = list(asked)
    network = ("network", (4, *SHAPE))
    rows = [("advance", 0, True), *(each for k in range(3) for each in (network, ("advance", k + 1, False)))]
    assert sequences == {"off": rows, "loop": rows, "step": rows}


def test_buckets_pad_and_trim(replay):  # noqa: F811
    prepared = of("loop", batch_size=8, buckets=[2, 4])
    sizes = []
    prepared.denoiser.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    for count in (1, 2, 3, 5, 8, 19):
        seeds = list(range(100, 100 - count, -1))
        drawn = prepared.sample(seeds=seeds)
        assert torch.equal(drawn, of(batch_size=8).sample(seeds=seeds))
    assert set(sizes) == {2, 4, 8}
    assert sorted(each.batch for each in prepared.captures) == [2, 4, 8]


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
def test_a_network_that_waits_for_the_device_is_named(replay, name):  # noqa: F811
    denoiser = Denoiser(Waiting(WAYS[name]), EDM(), img_shape=SHAPE)
    refused = engine.Engine(denoiser, sampler=HEUN, graph="loop")
    with pytest.raises(engine.CaptureError, match=f"{name} in 0.inner .Inner. waits for .*; allowed: graph='off'"):
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


def test_indexing_by_numbers_does_not_wait(replay):  # noqa: F811
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
    with pytest.raises(ValueError, match=r"buckets is \[0\]; allowed: integers from 1"):
        of(buckets=[0])
    assert of("auto").captures == ()


def test_the_reference_reads_values_on_the_host(replay):  # noqa: F811
    with pytest.raises(ValueError, match="the reference backend reads values on the host"):
        of("loop", backend="reference")


def test_the_adaptive_sampler_is_in_no_graph(replay):  # noqa: F811
    with pytest.raises(ValueError, match="graph is 'step'; allowed: 'auto', 'off', with the adaptive"):
        of("step").sample(seeds=[1], sampler=engine.samplers.rk45(0.1, 0.1))
    of("auto").sample(seeds=[1], sampler=engine.samplers.rk45(0.1, 0.1))
    assert replay.warmed == 0


def test_calls_from_several_threads_are_served_in_turn(replay):  # noqa: F811
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


def test_streams_of_one_engine_may_be_read_alternately(replay):  # noqa: F811
    prepared = of("loop", batch_size=2)
    streams = [prepared.stream(seeds=range(start, start + 6)) for start in (0, 10)]
    drawn = [[], []]
    for _ in range(3):
        for stream, images in zip(streams, drawn, strict=True):
            images.append(next(stream)[1])
    for images, start in zip(drawn, (0, 10), strict=True):
        assert torch.equal(torch.cat(images), of(batch_size=2).sample(seeds=range(start, start + 6)))


@pytest.mark.parametrize("graph", ["loop", "step"])
def test_what_is_let_go_is_freed_at_once(replay, graph):  # noqa: F811
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


def test_images_are_the_callers_own(replay):  # noqa: F811
    for output_dtype in (torch.float32, torch.float64):
        prepared = of("loop", output_dtype=output_dtype)
        first = prepared.sample(seeds=range(4))
        kept = first.clone()
        prepared.sample(seeds=range(4, 8))
        assert torch.equal(first, kept)


def test_a_sample_that_is_not_finite_is_drawn_again(replay):  # noqa: F811
    class Overflowing(nn.Module):
        dtype = torch.float16

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(60000.0))

        def forward(self, x, c_noise):
            return x * self.scale * torch.where(x[:, :1, :1, :1] > 0.4, 1.0, 1e-5).to(x.dtype)

    Overflowing.dtype = property(lambda self: self.scale.dtype)
    denoiser, draws = Denoiser(Overflowing(), EDM(), img_shape=SHAPE), {}
    for graph in ("off", "loop"):
        prepared = engine.Engine(
            denoiser, dtype=torch.float16, sampler=HEUN, batch_size=4, graph=graph, on_nonfinite="rerun"
        )
        for _ in range(2):
            with pytest.warns(RuntimeWarning, match="became non-finite"):
                draws[graph] = prepared.sample(seeds=range(8))
    assert torch.equal(draws["off"], draws["loop"])
    assert torch.isfinite(draws["loop"]).all()
