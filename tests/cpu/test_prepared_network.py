"""Networks as engines prepare them, against float64 by the yardstick of the plain module in the same dtype."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import engine
from engine.measure import peak_bytes
from engine.networks import DhariwalUNet, SongUNet
from engine.networks.block import UNetBlock
from engine.networks.layers import Conv2d
from engine.networks.precision import cast_network
from engine.preconditioning import EDM
from tests.helpers import tensors_alive

TINY = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "label_dim": 3}
NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
KINDS = {
    "ddpmpp": lambda: SongUNet(16, 3, 3, **TINY),
    "ncsnpp": lambda: SongUNet(16, 3, 3, **TINY, **NCSNPP),
    "skip": lambda: SongUNet(16, 3, 3, **TINY, encoder_type="skip", decoder_type="skip"),
    "adm": lambda: DhariwalUNet(16, 3, 6, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(8,),
                                label_dim=3),
}  # fmt: skip
BATCH = 3


def denoiser_of(kind):
    torch.manual_seed(0)
    network = KINDS[kind]().eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return engine.Denoiser(network, EDM(), img_shape=(3, 16, 16))


def inputs(dtype, batch=BATCH):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 16, 16, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, torch.linspace(-1, 1, batch), torch.eye(3)[torch.arange(batch) % 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_it_is_as_exact_as_the_plain_module(kind, dtype):
    denoiser = denoiser_of(kind)
    x, c_noise, labels = inputs(dtype)
    exact = copy.deepcopy(denoiser.model).double()(x.double(), c_noise.double(), labels.double())
    plain = cast_network(copy.deepcopy(denoiser.model), dtype)(x, c_noise, labels).double() - exact
    got = engine.Engine(denoiser, dtype=dtype).denoiser.model(x, c_noise, labels)
    assert got.dtype == dtype
    error = got.double() - exact
    assert error.square().mean() <= (1.5**2) * plain.square().mean()
    assert error.abs().max() <= 1.5 * plain.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_evaluations_that_are_remembered_are_the_same_bits(kind, dtype):
    prepared = engine.Engine(denoiser_of(kind), dtype=dtype).denoiser
    for batch in (1, 3):
        x, c_noise, labels = inputs(dtype, batch)
        for i in range(5):
            of = (x * (1 + i), c_noise + i, labels.roll(i, 1))
            assert torch.equal(prepared.call_network(*of), prepared.model(*of))
        assert prepared.remembered.tape_for(*of) is not None


def test_the_caller_s_module_is_left_alone():
    denoiser = denoiser_of("ddpmpp")
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    x, c_noise, labels = inputs(torch.float32)
    with torch.no_grad():
        expected = denoiser.model(x, c_noise, labels)
        for dtype in (None, torch.bfloat16):
            engine.Engine(denoiser, dtype=dtype).sample(seeds=[1], class_labels=0, sampler=engine.samplers.edm(2))
        assert torch.equal(denoiser.model(x, c_noise, labels), expected)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert not any(m.folded for m in denoiser.modules() if isinstance(m, UNetBlock))
    assert all(m.packed is None for m in denoiser.modules() if isinstance(m, Conv2d))


def test_weights_that_are_half_already_are_not_scaled():
    """To round them a second time would cost accuracy; the scale then stays an operation."""
    denoiser = denoiser_of("ddpmpp")
    cast_network(denoiser.model, torch.bfloat16)
    prepared = engine.Engine(denoiser).denoiser
    assert not any(m.folded for m in prepared.modules() if isinstance(m, UNetBlock))
    x, c_noise, labels = inputs(torch.bfloat16)
    with torch.no_grad():
        assert (prepared.model(x, c_noise, labels) - denoiser.model(x, c_noise, labels)).abs().max() < 0.1


@torch.no_grad()
def test_batches_of_many_sizes_keep_few_packed_weights():
    prepared = engine.Engine(denoiser_of("adm"), dtype=torch.float32).denoiser
    together = prepared.model(*inputs(torch.float32))
    for batch in (1, 2, 4, 5, BATCH):
        got = prepared.model(*inputs(torch.float32, batch))
    assert torch.equal(got, together)
    assert max(len(m.packed) for m in prepared.modules() if isinstance(m, Conv2d)) == 2


def test_several_threads_with_batches_of_their_own():
    prepared = engine.Engine(denoiser_of("adm")).denoiser
    batches = (1, 2, 4, 5)
    with torch.no_grad():
        alone = [prepared.model(*inputs(torch.float32, batch)) for batch in batches]

    def work(batch):
        with torch.no_grad():
            return [prepared.model(*inputs(torch.float32, batch)) for _ in range(20)]

    with ThreadPoolExecutor(len(batches)) as pool:
        for expected, drawn in zip(alone, pool.map(work, batches), strict=True):
            assert all(torch.equal(images, expected) for images in drawn)


@torch.no_grad()
def test_sums_and_norms_are_inside_other_operations():
    def count(network):
        network(*inputs(torch.float32))  # packs the weights
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            network(*inputs(torch.float32))
        passes = {f"aten::{name}" for name in ("add", "add_", "mul", "silu", "group_norm", "conv2d")}
        return sum(event.cpu_parent is None and event.name in passes for event in profile.events())

    denoiser = denoiser_of("ddpmpp")
    plain, prepared = count(denoiser.model), count(engine.Engine(denoiser).denoiser.model)
    assert plain > 100
    assert prepared < plain / 10


@torch.no_grad()
def test_memory_does_not_grow():
    """Over 100 evaluations: as many tensors alive, and each holds as much at its most as the first."""
    prepared = engine.Engine(denoiser_of("adm"), dtype=torch.bfloat16).denoiser.model
    arguments = inputs(torch.bfloat16)
    prepared(*arguments)  # packs the weights
    alive = [peak_bytes(lambda: prepared(*arguments), arguments) for _ in range(2)]
    tensors = tensors_alive()
    for _ in range(100):
        prepared(*arguments)
    assert tensors_alive() == tensors
    assert {*alive, peak_bytes(lambda: prepared(*arguments), arguments)} == {alive[0]}


@torch.no_grad()
def test_it_holds_less_than_the_plain_module():
    denoiser, arguments = denoiser_of("ddpmpp"), inputs(torch.float32)
    prepared = engine.Engine(denoiser).denoiser.model
    prepared(*arguments)
    plain, ours = (
        peak_bytes(lambda network=network: network(*arguments), arguments) for network in (denoiser.model, prepared)
    )
    assert ours < plain
