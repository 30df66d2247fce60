"""Remembered evaluations: the bits of the network, whatever is put in, and the network itself where somebody looks."""

import threading

import pytest
import torch
from torch import nn

import engine
from engine.measure import peak_bytes
from engine.networks.tape import Remembered, whole
from engine.preconditioning import EDM
from tests.helpers import small_unet


class Network(nn.Module):
    """Operations of every form: views, several results, in place, lists, keywords, and calls that are one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4))
        self.calls = 0

    def forward(self, x, c_noise, labels=None):
        self.calls += 1
        first, second = x.chunk(2, dim=1)
        both = torch.cat([first, second * self.weight], dim=1)
        both += c_noise[:, None]
        y, z = whole(lambda a, b: (a @ b.T, None), both, x)
        assert z is None
        y = torch.zeros_like(y, dtype=torch.float64).add_(y).to(torch.float32)
        return y if labels is None else y + labels.sum(dim=1, keepdim=True)


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
    network = Network()
    remembered, (x, c_noise, _) = Remembered(network), inputs(0)
    with torch.no_grad():
        for _ in range(3):
            remembered(x, c_noise, None)
    remembered(x.requires_grad_(), c_noise, None).sum().backward()
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


@torch.no_grad()
def test_a_replay_holds_no_more_than_the_network():
    network, of = nn.Sequential(*(nn.Linear(64, 64) for _ in range(9))), (torch.ones(8, 64),)
    remembered = Remembered(network)
    for _ in range(3):
        remembered(*of)
    assert peak_bytes(lambda: remembered(*of), of) == peak_bytes(lambda: network(*of), of)


def test_engines_remember_our_networks_and_no_others():
    sampler = engine.samplers.edm(steps=6)
    ours = engine.Engine(small_unet(), sampler=sampler)
    calls = []
    handle = ours.denoiser.model.register_forward_hook(lambda *of: calls.append(1))
    listened = ours.sample(seeds=[1, 2])
    assert len(calls) == 11
    handle.remove()
    assert torch.equal(ours.sample(seeds=[1, 2]), listened)
    assert [tape is not None for tape in ours.denoiser.remembered._tapes.values()] == [True]

    class Wrapped(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, c_noise):
            return self.network(x, c_noise) * (2 if c_noise.mean() > 0 else 1)

    unet = small_unet()
    wrapped = engine.Denoiser(Wrapped(unet.model), EDM(), img_shape=unet.img_shape)
    assert engine.Engine(wrapped).denoiser.remembered is None
