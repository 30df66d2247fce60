"""Remembered evaluations: the bits of the network, whatever is put in, and the network itself where somebody looks."""

import threading

import pytest
import torch
from torch import nn

import engine
from engine.measure import peak_bytes
from engine.networks.recording import native
from engine.networks.remembered import Remembered
from engine.networks.tape import Tape
from engine.preconditioning import EDM
from tests.helpers import small_unet


def linear(x, weight, add=None):
    """x W^T + add by our own call."""
    out = x.new_empty(len(x), len(weight))
    native("Linear", (x, weight, None, add, out), (*x.shape, len(weight)), False)
    return out


class Network(nn.Module):
    """Operations of every form: views, several results, in place, lists, keywords; and calls of ours, of inputs, of
    what torch made and of each other's results, whose results torch reads, writes and looks at."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4))
        self.square = nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))
        self.calls = 0

    def forward(self, x, c_noise, labels=None):
        self.calls += 1
        first, second = x.chunk(2, dim=1)
        both = torch.cat([first, second * self.weight], dim=1)
        both += c_noise[:, None]
        y = linear(x, self.square.t().contiguous())
        for _ in range(3):
            y = linear(y, self.square, add=both)
        y.add_(1)
        above, below = y.view(len(x), 2, 4).unbind(1)
        y = linear(torch.cat([below, above], dim=1), self.square, add=y)
        y = torch.zeros_like(y, dtype=torch.float64).add_(y).to(torch.float32)
        y = y if labels is None else y + labels.sum(dim=1, keepdim=True)
        return linear(y, self.square[:3])


def inputs(seed, batch=3, labels=True):
    generator = torch.Generator().manual_seed(seed)
    x, c_noise, given = (torch.randn(batch, *shape, generator=generator) for shape in ((8,), (), (5,)))
    return x, c_noise, given if labels else None


@torch.no_grad()
def test_replays_are_the_network_to_the_bit():
    network = Network()
    remembered = Remembered(network)
    for seed in range(6):
        for labels in (True, False):
            of = inputs(seed, labels=labels)
            assert torch.equal(remembered(*of), network(*of))
    assert network.calls == 12 + 4  # the first of a shape, and the one that is recorded


@torch.no_grad()
def test_results_are_nobody_elses():
    remembered = Remembered(Network())
    kept = [remembered(*inputs(seed)) for seed in range(5)]
    copies = [out.clone() for out in kept]
    remembered(*inputs(9))
    assert all(map(torch.equal, kept, copies))


@torch.no_grad()
def test_few_shapes_are_kept():
    network = Network()
    remembered = Remembered(network)
    for batch in (1, 2, 3, 4, 5, 5, 5, 4, 4, 4, 5):
        of = inputs(batch, batch)
        assert torch.equal(remembered(*of), network(*of))
    assert len(remembered._tapes) == 2
    before = network.calls
    remembered(*inputs(0, 4))
    assert network.calls == before


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@torch.no_grad()
def test_hooks_are_called(register):
    network = nn.Sequential(nn.Linear(8, 8), nn.SiLU())
    remembered, x, seen = Remembered(network), torch.ones(2, 8), []
    for _ in range(4):
        remembered(x)
    for module in (network[0], torch.nn.modules.module):
        add = getattr(module, register if module is network[0] else register.replace("register_", "register_module_"))
        handle = add(lambda *of: seen.append(of[0]))
        remembered(x)
        assert network[0] in seen
        handle.remove()
        seen.clear()
        remembered(x)
        assert seen == []


def test_gradients_pass():
    remembered, x = Remembered(Deep(nn.functional.linear)), torch.ones(2, 64)
    with torch.no_grad():
        for _ in range(3):
            remembered(x)
    remembered(x.requires_grad_()).sum().backward()
    assert x.grad is not None


@torch.no_grad()
def test_threads_replay_side_by_side():
    network = Network()
    remembered, wrong = Remembered(network), []

    def work(first):
        with torch.no_grad():
            for seed in range(first, first + 40):
                of = inputs(seed, batch=2 + seed % 2)
                if not torch.equal(remembered(*of), network(*of)):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Deep(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.weights = nn.ParameterList(torch.eye(64) for _ in range(9))
        self.layer = layer

    def forward(self, x):
        for weight in self.weights:
            x = self.layer(x, weight)
        return x


@pytest.mark.parametrize("layer", [linear, nn.functional.linear])
@torch.no_grad()
def test_a_replay_holds_no_more_than_the_network_and_neither_does_the_recording(layer):
    network, of = Deep(layer), (torch.ones(8, 64),)
    remembered = Remembered(network)
    there = [*of, *network.parameters()]
    held = peak_bytes(lambda: network(*of), there)
    assert held == 2 * of[0].nbytes
    assert peak_bytes(lambda: remembered._record("key", of), there) <= held + of[0].nbytes  # the result's copy
    tape = remembered._tapes["key"]
    assert tape.nbytes + peak_bytes(lambda: tape(*of), there) <= held + of[0].nbytes
    assert (layer is linear) == (tape.nbytes > 0)


@torch.no_grad()
def test_who_looks_at_torchs_operations_sees_those_of_the_network():
    network, of = Network(), inputs(0)
    remembered = Remembered(network)
    for _ in range(3):
        remembered(*of)
    assert peak_bytes(lambda: remembered(*of), of) == peak_bytes(lambda: network(*of), of)


@torch.no_grad()
def test_a_profile_shows_our_calls():
    network, of, seen = Network(), inputs(0), []
    remembered = Remembered(network)
    for call in (network, remembered, remembered, remembered):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            call(*of)
        seen.append([event.name for event in profile.events() if event.name.startswith("edm::")])
    assert seen == [["edm::Linear"] * 6] * 4


def counted(x, weight):
    weights = torch.tensor([1.0] * 8)
    weights += x[0]
    return x + weights


def turned(x, weight):
    y = x.new_empty(3, 3)
    y.copy_(x[:, :3])
    return y.t_() + 0


def grown(x, weight):
    y = torch.mm(x, weight, out=x.new_empty(0))
    return linear(linear(y, weight), weight, add=y)


def conjugate(x, weight):
    z = torch.complex(x, 2 * x)
    w = torch.complex(x, x)
    return (z * w).imag + (z.conj() * w).imag * 3


def hidden(x, weight):
    """A view that torch's dispatcher is not told of."""
    return torch.empty(0).set_((x * 2).untyped_storage(), 0, (8,), (1,)) + 1


# Decides by values, changes a tensor's shape, writes to what an evaluation finds, or makes what is no plain tensor.
UNFOLLOWED = {
    "item": lambda x, weight: x / x.abs().max().item(),
    "branch": lambda x, weight: x + 1 if x.sum() > 0 else x - 1,
    "mask": lambda x, weight: x + x[x > 0].sum(),
    "written": counted,
    "turned": turned,
    "grown": grown,
    "conjugate": conjugate,
    "sparse": lambda x, weight: (x * 2).to_sparse().to_dense() + 1,
    "oneDNN": lambda x, weight: (x * 2).to_mkldnn().to_dense() + 1,
    "hidden": hidden,
}


class Told(nn.Module):
    def __init__(self, told):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))
        self.told = told

    def forward(self, x):
        return self.told(x, self.weight)


@pytest.mark.parametrize("told", UNFOLLOWED.values(), ids=UNFOLLOWED)
@torch.no_grad()
def test_what_cannot_be_followed_is_not_replayed(told):
    network = Told(told)
    remembered = Remembered(network)
    for seed in range(5):
        x = inputs(seed)[0]
        assert torch.equal(remembered(x), network(x))
    assert remembered.tape_for(x) is None


COPIES = {
    "reshape": lambda x, weight: linear(x, weight).t().reshape(3, 8),
    "contiguous": lambda x, weight: linear(x, weight).t().contiguous(),
    "to": lambda x, weight: linear(x, weight).to(torch.float64),
    "data": lambda x, weight: linear(x, weight).data + 1,
}


@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_a_view_that_is_a_copy_is_made_in_every_replay(copies):
    """In inference mode torch's dispatcher is told of `reshape` itself, whose result may be a view."""
    network = Told(copies)
    remembered = Remembered(network)
    for seed in range(5):
        x = inputs(seed)[0]
        with torch.inference_mode():
            assert torch.equal(remembered(x), network(x))
    assert remembered.tape_for(x) is not None
    with torch.no_grad():
        assert torch.equal(remembered(x), network(x))


@torch.no_grad()
def test_autocast_is_no_part_of_it():
    network = Told(lambda x, weight: x @ weight)
    remembered, x = Remembered(network), inputs(0)[0]
    for _ in range(3):
        expected = remembered(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert remembered(x).dtype == torch.bfloat16
    assert torch.equal(remembered(x), expected)


@torch.no_grad()
def test_weights_are_packed_once():
    denoiser = engine.Engine(small_unet()).denoiser
    x, c_noise = torch.randn(2, 1, 16, 16).contiguous(memory_format=torch.channels_last), torch.zeros(2)
    denoiser.call_network(x, c_noise, None)
    for module in denoiser.modules():
        if getattr(module, "packed", None):
            module.packed.clear()
    for _ in range(2):
        denoiser.call_network(x, c_noise, None)
    tape = denoiser.remembered.tape_for(x, c_noise)
    assert len(tape._steps) < 20
    assert not any("pad" in str(step.call) or "reorder" in str(step.call) for step in tape._steps)


@torch.no_grad()
def test_inputs_in_one_storage_are_kept_apart():
    network = Deep(lambda x, _: x)
    network.forward = lambda x, y: x - 2 * y
    remembered, one = Remembered(network), torch.ones(2)
    for _ in range(2):
        remembered(one, one)
    assert torch.equal(remembered(one, 3 * one), -5 * one)


@torch.no_grad()
def test_a_replay_that_fails_leaves_the_tape_whole():
    network, of = Network(), inputs(0)
    remembered = Remembered(network)
    for _ in range(3):
        expected = remembered(*of)
    tape = remembered.tape_for(*of)
    with pytest.raises(RuntimeError):
        tape(of[0], of[1], None)
    assert torch.equal(remembered(*of), expected)
    assert len(tape._arenas) == len(tape._idle) == 1


def test_engines_remember_our_networks_and_no_others():
    sampler = engine.samplers.edm(steps=6)
    ours = engine.Engine(small_unet(), sampler=sampler)
    calls = []
    handle = ours.denoiser.model.register_forward_hook(lambda *of: calls.append(1))
    listened = ours.sample(seeds=[1, 2])
    assert len(calls) == 11
    handle.remove()
    assert torch.equal(ours.sample(seeds=[1, 2]), listened)
    assert [type(tape) for tape in ours.denoiser.remembered._tapes.values()] == [Tape]

    class Wrapped(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, c_noise):
            return self.network(x, c_noise) * (2 if c_noise.mean() > 0 else 1)

    unet = small_unet()
    wrapped = engine.Denoiser(Wrapped(unet.model), EDM(), img_shape=unet.img_shape)
    assert engine.Engine(wrapped).denoiser.remembered is None
