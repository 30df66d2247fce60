"""The captured loop, where work that is remembered stands for CUDA graphs: what is captured, when, and with which bits.

tests/gpu/test_graphs.py runs the same engines with real ones.
"""

import itertools

import pytest
import torch
from torch import nn

import engine
from engine import Denoiser
from engine.guidance import AutoGuidance, ClassifierFree, ClassifierGuidance
from engine.preconditioning import EDM
from engine.samplers import linear, registry, table
from tests.helpers import small_unet, wavy

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
def test_graphs_give_the_bits_of_the_eager_loop(replay, graph, sampler):
    prepared = of(graph, sampler=sampler)
    same(prepared, options={"sampler": sampler}, seeds=range(4))
    assert replay.replayed > 0
    others = prepared.sample(seeds=range(4, 8))
    assert torch.equal(others, of(sampler=sampler).sample(seeds=range(4, 8)))
    assert not torch.equal(others, prepared.sample(seeds=range(4)))


@pytest.mark.parametrize("graph", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_unet_in_every_dtype(replay, graph, dtype):
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
def test_guidance(replay, graph, guidance):
    options = {"guidance": guidance}
    same(of(graph, 3, **options), 3, options, seeds=range(4), class_labels=[0, 1, 2, 0])


@pytest.mark.parametrize("graph", MODES)
def test_every_kind_of_noise_and_known_pixels(replay, graph):
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


@pytest.mark.parametrize("graph", ["loop", "step"])
def test_a_check_after_the_last_row_reads_within_the_table(replay, graph):
    """Who looks at the last evaluation only has a step graph of its own, checked when it has been run there."""
    guidance = ClassifierGuidance(0.5, gradient=lambda x, sigma, labels: -x / (1 + sigma.reshape(-1, 1, 1, 1)))
    for steps in (1, 2, 4, 8):  # tables of 2, 4, 8 and 16 rows
        options = {"guidance": guidance, "sampler": engine.samplers.edm(steps), "batch_size": 1}
        drawn = of(graph, **options).sample(seeds=[1], callback=lambda progress: None, callback_every=99)
        assert torch.equal(drawn, of(**options).sample(seeds=[1]))


@pytest.mark.parametrize("graph", MODES)
def test_calls_in_and_out_of_inference_mode(replay, graph):
    prepared, expected = of(graph), of().sample(seeds=range(4))
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(prepared.sample(seeds=range(4)), expected)
        assert torch.equal(prepared.sample(seeds=range(4), callback=lambda progress: None), expected)
        assert torch.equal(prepared.sample(seeds=range(4)), expected)


def test_the_same_calls_are_captured_as_are_run(monkeypatch, replay):
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


def test_buckets_pad_and_trim(replay):
    prepared = of("loop", batch_size=8, buckets=[2, 4])
    sizes = []
    prepared.denoiser.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    for count in (1, 2, 3, 5, 8, 19):
        seeds = list(range(100, 100 - count, -1))
        drawn = prepared.sample(seeds=seeds)
        assert torch.equal(drawn, of(batch_size=8).sample(seeds=seeds))
    assert set(sizes) == {2, 4, 8}
    assert sorted(each.batch for each in prepared.captures) == [2, 4, 8]


def test_images_are_the_callers_own(replay):
    for output_dtype in (torch.float32, torch.float64):
        prepared = of("loop", output_dtype=output_dtype)
        drawn = [images for _, images in prepared.stream(seeds=range(12))]
        expected = of(output_dtype=output_dtype).sample(seeds=range(12))
        assert torch.equal(torch.cat(drawn), expected)


def test_nothing_of_a_batch_is_left_to_the_next(monkeypatch, replay):
    """Neither slots, which a table may read before it writes them, nor the mark of a sample that was not finite."""
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))

    @table(source="a test: every row reads what the one before left, the first one nothing")
    def remembering(sigmas):
        for sigma, sigma_next in itertools.pairwise(sigmas):
            yield linear(sigma, x=sigma_next / sigma, D=1 - sigma_next / sigma, slots=(0.25,), store=(0, 0.0, 1.0))

    for graph in ("loop", "step"):
        options = {"sampler": remembering(steps=3)}
        prepared = of(graph, **options)
        broken = torch.full((4, *SHAPE), 1e300, dtype=torch.float64)  # beyond the network's float32
        for first in (0, 4, 8):
            with pytest.raises(engine.NonFiniteError):
                prepared.sample(latents=broken)
            assert torch.equal(
                prepared.sample(seeds=range(first, first + 4)), of(**options).sample(seeds=range(first, first + 4))
            )
            latents = torch.randn(4, *SHAPE)
            assert torch.equal(prepared.sample(latents=latents), of(**options).sample(latents=latents))


def test_a_sample_that_is_not_finite_is_drawn_again(replay):
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
