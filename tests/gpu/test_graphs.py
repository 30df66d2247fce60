"""CUDA graphs of whole loops: a replay equals the eager loop equals the reference around the same network, to the bit.

What needs no device (which calls are captured, when, what is evicted) is tested in tests/unit/test_graphs.py and
test_captures.py beside it.
"""

import gc
import threading
import warnings

import pytest
import torch
from torch import nn

import engine
from engine import Denoiser
from engine.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance
from engine.preconditioning import EDM
from engine.run import Watch
from tests.helpers import small_unet, tensors_alive, tree

DETERMINISTIC = engine.samplers.edm(4)
CHURNED = engine.samplers.edm(4, S_churn=2, S_noise=1.003)
MULTISTEP = engine.samplers.dpmpp_2m(5)
ANCESTRAL = engine.samplers.ddpm(5)
BATCHES = (1, 2, 3, 4, 8)


def slope(x, sigma, labels):
    return -x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


GUIDANCES = {
    "none": None,
    "classifier-free": ClassifierFree(2.0, interval=(0.05, 30)),
    "negative, rescaled": ClassifierFree(3.0, negative=1, rescale=0.7),
    "auto": AutoGuidance(1.5, guide=small_unet(label_dim=3, seed=1)),
    "classifier": ClassifierGuidance(0.5, gradient=slope),
}


def make(graph, dtype=torch.bfloat16, denoiser=None, **options):
    options = {"sampler": DETERMINISTIC, "batch_size": 8, "device": "cuda", "output_dtype": torch.float64} | options
    return engine.Engine(denoiser or small_unet(label_dim=3), dtype=dtype, graph=graph, **options)


def labels(count):
    return [i % 3 for i in range(count)]


@pytest.mark.parametrize("graph", ["loop", "step"])
@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize(
    "sampler",
    [DETERMINISTIC, CHURNED, MULTISTEP, ANCESTRAL],
    ids=["deterministic", "churned", "multistep", "ancestral"],
)
def test_a_replay_equals_eager_equals_the_reference(graph, guidance, sampler):
    options = {"sampler": sampler, "guidance": GUIDANCES[guidance]}
    captured, eager = make(graph, **options), make("off", **options)
    reference = make("off", backend="reference", **options)
    for count in BATCHES:  # every bucket, one of them padded
        for first in (0, 100):
            asked = {"seeds": range(first, first + count), "class_labels": labels(count)}
            expected = eager.sample(**asked)
            assert torch.equal(reference.sample(**asked), expected)
            for _ in range(2):
                assert torch.equal(captured.sample(**asked), expected)
    assert {each.batch for each in captured.captures} == {1, 2, 4, 8}
    assert all(each.batches > each.graphs > 0 for each in captured.captures)


@pytest.mark.parametrize("graph", ["loop", "step"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_and_dtypes(graph, backend, state_dtype, dtype):
    options = {"sampler": CHURNED, "state_dtype": state_dtype, "backend": backend}
    captured, eager = make(graph, dtype, **options), make("off", dtype, **options)
    for seeds in ([1, 2, 3, 4], [5, 6, 7, 8]):
        expected = eager.sample(seeds=seeds, class_labels=1)
        for _ in range(2):
            assert torch.equal(captured.sample(seeds=seeds, class_labels=1), expected)


@pytest.mark.parametrize("graph", ["loop", "step"])
def test_every_kind_of_noise_and_known_pixels(graph):
    shape = (1, 16, 16)
    mask = torch.zeros(16, 16, dtype=torch.bool)  # one for all, and one image: both are expanded
    mask[..., :5] = True
    captured, eager = make(graph, sampler=CHURNED), make("off", sampler=CHURNED)
    for asked in (
        {"noise": "torch", "seeds": range(4)},
        {"noise": torch.randn(4, 4, *shape), "latents": torch.randn(4, *shape)},
        {"image": torch.rand(1, *shape).expand(4, *shape), "mask": mask, "seeds": range(4)},
        {"offset_noise": 0.1, "seeds": range(4)},
    ):
        for _ in range(3):
            drawn = captured.sample(class_labels=1, **asked)
        assert torch.equal(drawn, eager.sample(class_labels=1, **asked))


def test_data_changes_without_a_capture():
    captured = make("loop", guidance=ClassifierFree(2.0))
    eager = make("off", guidance=ClassifierFree(2.0))
    captured.sample(seeds=range(4), class_labels=0)
    for changed in (
        {"sampler": engine.samplers.edm(4, sigma_min=0.01, sigma_max=20, rho=3)},
        {"sampler": CHURNED},
        {"guidance": ClassifierFree([2.0, 3.0, 4.0, 5.0], negative=2)},
        {"class_labels": [2, 1, 0, 1]},
        {"seeds": range(9, 13)},
    ):
        asked = {"seeds": range(4), "class_labels": 0} | changed
        assert torch.equal(captured.sample(**asked), eager.sample(**asked))
    (loop,) = captured.captures
    assert (loop.graphs, loop.batches) == (1, 6)
    assert loop.seconds > 0


# What torch says of the mode itself.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("graph", ["off", "loop", "step"])
def test_no_host_synchronisation_between_the_first_launch_and_the_last(graph):
    prepared = make(graph, sampler=CHURNED, guidance=ClassifierFree(2.0))
    for _ in range(3):
        expected = prepared.sample(seeds=range(8), class_labels=1)
    run, job = prepared._check(None, ..., {"seeds": range(8), "class_labels": 1})
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.no_grad():
            launched = prepared._launcher.launch(run, job, Watch(), prepared._floats)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched.bad_row.wait()
    assert torch.equal(launched.images.wait(), expected)


def test_callbacks_keep_the_graph():
    told, captured = [], make("loop", sampler=CHURNED)
    expected = make("off", sampler=CHURNED).sample(seeds=range(3), class_labels=1)
    for _ in range(2):
        told.clear()
        drawn = captured.sample(seeds=range(3), class_labels=1, callback=told.append, callback_every=2)
    assert torch.equal(drawn, expected)
    assert [each.evaluation for each in told] == [2, 4, 6, 7]
    assert torch.isfinite(torch.stack([each.denoised for each in told])).all()
    assert [each.kind for each in captured.captures] == ["step"]


def test_a_step_graph_takes_the_same_memory_for_any_number_of_evaluations():
    sizes = []
    for steps in (10, 60):
        prepared = make("step", sampler=engine.samplers.edm(steps, solver="euler"))
        for _ in range(2):
            prepared.sample(seeds=range(8), class_labels=1)
        sizes.append(sum(each.nbytes for each in prepared.captures))
    assert sizes[1] - sizes[0] < 4 << 20  # the table is longer; memory is handed out in pieces of 2 MB


def test_no_growth_over_many_batches():
    prepared = make("loop")
    for _ in range(5):
        prepared.sample(seeds=range(8), class_labels=1)
    before = held()
    for first in range(0, 800, 8):
        prepared.sample(seeds=range(first, first + 8), class_labels=1)
    assert held() == before


def held():
    """Bytes of the device's memory, used and reserved, and tensors, without garbage."""
    torch.cuda.synchronize()
    gc.collect()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), tensors_alive()


def test_graphs_beyond_the_budget_are_let_go():
    prepared = make("loop", graph_memory=1)
    for count in (8, 4, 8):
        prepared.sample(seeds=range(count), class_labels=1)
        assert len(prepared.captures) == 1
    expected = make("off").sample(seeds=range(8), class_labels=1)
    assert torch.equal(prepared.sample(seeds=range(8), class_labels=1), expected)


@pytest.mark.parametrize("graph", ["auto", "loop"])
def test_several_engines_and_threads(graph):
    """Each captures and replays while others do."""
    denoisers = [small_unet(label_dim=3, seed=seed) for seed in range(3)]
    expected = [make("off", denoiser=each).sample(seeds=range(8), class_labels=1) for each in denoisers]
    shared, errors, found = make(graph, denoiser=denoisers[0]), [], {}

    def draw(number):
        try:
            mine = shared if number < 2 else make(graph, denoiser=denoisers[number - 1])
            with torch.cuda.stream(torch.cuda.Stream()):
                found[number] = [mine.sample(seeds=range(8), class_labels=1) for _ in range(6)]
                torch.cuda.current_stream().synchronize()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=draw, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    for number, drawn in found.items():
        assert all(torch.equal(images, expected[max(0, number - 1)]) for images in drawn)


class Doing(nn.Module):
    """A network that does something no capture can hold, or something unusual that one can."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, c_noise):
        return self.what(x) * self.gain / (1 + x.abs())


REFUSED = {
    "_local_scalar_dense": lambda x: x * x.abs().max().item(),
    "nonzero": lambda x: x * len(torch.nonzero(x)),
    "_to_copy": lambda x: x * torch.ones(3).to(x.device).sum(),
    "lift_fresh": lambda x: x * torch.tensor([0.5], device=x.device),
    "aten::index": lambda x: x + x[x > 0].sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_named(name):
    denoiser = Denoiser(Doing(REFUSED[name]), EDM(), img_shape=(3, 8, 8))
    with pytest.raises(engine.CaptureError, match=name):
        make("loop", torch.float32, denoiser).sample(seeds=range(4))
    expected = make("off", torch.float32, denoiser).sample(seeds=range(4))
    lenient = make("auto", torch.float32, denoiser)
    assert torch.equal(lenient.sample(seeds=range(4)), expected)
    with pytest.warns(RuntimeWarning, match=f"{name}.*runs without graphs"):
        assert torch.equal(lenient.sample(seeds=range(4)), expected)
    assert torch.equal(lenient.sample(seeds=range(4)), expected)
    after = make("loop", torch.float32)  # nothing is left of the refusal
    assert torch.equal(
        after.sample(seeds=range(4), class_labels=1),
        make("off", torch.float32).sample(seeds=range(4), class_labels=1),
    )


def test_a_capture_that_fails_all_the_same_is_told_and_leaves_the_stream():
    """What the watch before the capture does not know: a call into CUDA that is no operation of torch."""
    denoiser = Denoiser(Doing(lambda x: (torch.cuda.synchronize(), x)[1]), EDM(), img_shape=(3, 8, 8))
    stream = torch.cuda.current_stream()
    refused = make("loop", torch.float32, denoiser)
    for _ in range(2):
        with pytest.raises(engine.CaptureError, match="could not be captured"):
            refused.sample(seeds=range(4))
    assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    torch.randn(3, device="cuda")  # the default generator is no longer of a capture
    lenient = make("auto", torch.float32, denoiser)
    expected = make("off", torch.float32, denoiser).sample(seeds=range(4))
    lenient.sample(seeds=range(4))
    with pytest.warns(RuntimeWarning, match="runs without graphs"):
        lenient.sample(seeds=range(4))
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        assert torch.equal(lenient.sample(seeds=range(4)), expected)
    assert torch.cuda.memory_allocated() <= before + (1 << 20)  # nothing is deferred for ever
    after = make("loop", torch.float32)
    for _ in range(2):
        after.sample(seeds=range(4), class_labels=1)
    assert after.captures[0].graphs == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own imports
@pytest.mark.parametrize("compiled", [False, True])
def test_a_plain_torch_module(compiled):
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network

        def forward(self, x, c_noise):
            return self.layers(x * torch.exp(c_noise).reshape(-1, 1, 1, 1).to(x.dtype))

    denoiser = Denoiser(Plain(), EDM(), img_shape=(3, 8, 8))
    options = {"compile": compiled, "denoiser": denoiser}
    expected = make("off", **options).sample(seeds=range(4))
    captured = make("loop", **options)
    for _ in range(2):
        assert torch.equal(captured.sample(seeds=range(4)), expected)


def test_jobs_to_files(tmp_path):
    for graph in ("off", "loop"):
        prepared = make(graph, output_dtype=torch.float32)
        engine.draw_to(prepared, tmp_path / graph, seeds=range(100), class_labels=1)
    assert tree(tmp_path / "off") == tree(tmp_path / "loop")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_shipped_network(dtype):
    denoiser = engine.load("fashion-mnist")
    options = {"sampler": engine.samplers.edm(9, S_churn=3), "batch_size": 16, "denoiser": denoiser}
    captured, eager = make("auto", dtype, **options), make("off", dtype, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = captured.sample(seeds=range(50), class_labels=7)
    assert torch.equal(images, eager.sample(seeds=range(50), class_labels=7))
    assert captured.captures[0].graphs == 1
    captured.self_check()


def test_automatic_batch_size():
    prepared = make("loop", batch_size="auto")
    assert prepared.batch_size >= 64
    drawn = prepared.sample(seeds=range(4), class_labels=1)
    assert torch.equal(drawn, make("off").sample(seeds=range(4), class_labels=1))
