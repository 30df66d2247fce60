"""Callbacks while a batch is drawn, batches that do not fit, and batch sizes found by measurement."""

import threading
import types
import warnings

import pytest
import torch
from torch import nn

import engine
from engine import Denoiser
from engine.fitting import fitting_batch, largest_fitting
from engine.graphs.capture import CAPTURES
from engine.guidance import ClassifierFree
from engine.launch import buckets_of
from engine.preconditioning import EDM, VP, Preconditioning
from tests.helpers import wavy
from tests.replay import Replay

SHAPE = (3, 8, 6)
HEUN = engine.samplers.edm(4, S_churn=2, S_noise=1.003)
CPU = torch.device("cpu")


class Stopped(Exception):
    """What a caller raises to end a batch."""


@pytest.fixture(params=["off", "auto", "loop", "step"])
def graph(request):
    if request.param != "off":
        request.getfixturevalue("replay")
    return request.param


def plain_D(denoiser: Denoiser, seeds, sampler, **options) -> list[torch.Tensor]:
    """D of every evaluation, by calling the denoiser where the engine's network is called."""
    seen: list[torch.Tensor] = []
    prepared = engine.Engine(denoiser, sampler=sampler, graph="off", **options)
    sigmas = engine.Plan(sampler, denoiser.preconditioning).sigmas
    network = prepared.denoiser.call_network

    def call(net_in, c_noise, labels):
        sigma = torch.full([len(net_in)], sigmas[len(seen)])
        c_skip, c_out, c_in, _ = (c.reshape(-1, 1, 1, 1) for c in denoiser.preconditioning.coefficients(sigma))
        F = network(net_in, c_noise, labels)
        seen.append(c_skip * (net_in.float() / c_in) + c_out * F.float())
        return F

    prepared.denoiser.call_network = call  # type: ignore[method-assign]
    prepared.sample(seeds=seeds)
    return seen


@pytest.mark.parametrize("preconditioning", [EDM(), VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("every", [1, 3])
def test_a_callback_sees_the_denoised_images(graph, preconditioning: Preconditioning, every):
    denoiser, told = wavy(preconditioning, SHAPE), []
    prepared = engine.Engine(denoiser, sampler=HEUN, graph=graph)
    watched = prepared.sample(seeds=range(3), callback=told.append, callback_every=every)
    assert torch.equal(watched, engine.sample(denoiser, seeds=range(3), sampler=HEUN, graph="off"))
    assert [each.evaluation for each in told] == ([1, 2, 3, 4, 5, 6, 7] if every == 1 else [3, 6, 7])
    expected = plain_D(denoiser, range(3), HEUN)
    for each in told:
        assert (each.positions, each.nfe) == ((0, 1, 2), 7)
        assert each.sigma == engine.Plan(HEUN, denoiser.preconditioning).sigmas[each.evaluation - 1]
        torch.testing.assert_close(each.denoised, expected[each.evaluation - 1], rtol=1e-5, atol=1e-5)


def test_the_last_denoised_image_is_the_image(graph):
    """Euler's last step goes to D; a mask and guidance are in it too."""
    denoiser = wavy(EDM(), SHAPE, label_dim=2)
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[:, :, 2:] = True
    told: list[engine.Progress] = []
    sampler = engine.samplers.edm(5, solver="euler")
    prepared = engine.Engine(denoiser, sampler=sampler, graph=graph, guidance=ClassifierFree([2.0, 1.0]))
    asked = {"seeds": [1, 2], "class_labels": 1, "image": torch.rand(2, *SHAPE), "mask": mask}
    for _ in range(2):
        drawn = prepared.sample(**asked, callback=told.append)
        torch.testing.assert_close(told[-1].denoised, drawn, rtol=1e-5, atol=1e-5)
    assert torch.equal(drawn, prepared.sample(**asked))


def test_callbacks_of_padded_and_later_batches(graph):
    told: list[engine.Progress] = []
    prepared = engine.Engine(wavy(EDM(), SHAPE), sampler=HEUN, graph=graph, batch_size=4, buckets=[4])
    prepared.sample(seeds=range(6), callback=told.append, callback_every=100)
    assert [each.positions for each in told] == [(0, 1, 2, 3), (4, 5)]
    assert [len(each.denoised) for each in told] == [4, 2]


def test_a_callback_that_raises_ends_the_call_and_leaves_the_engine_whole(graph):
    prepared = engine.Engine(wavy(EDM(), SHAPE), sampler=HEUN, graph=graph)
    expected, told = prepared.sample(seeds=range(3)), []

    def stop(progress):
        told.append(progress)
        if progress.evaluation == 3:
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            prepared.sample(seeds=range(3), callback=stop)
    assert [each.evaluation for each in told] == [1, 2, 3] * 2
    for _ in range(2):
        assert torch.equal(prepared.sample(seeds=range(3)), expected)


def test_a_callback_may_not_draw_with_its_own_engine(replay):
    prepared = engine.Engine(wavy(EDM(), SHAPE), sampler=HEUN, graph="step")
    with pytest.raises(RuntimeError, match="callback draws with the engine that called it"):
        prepared.sample(seeds=[1], callback=lambda progress: prepared.sample(seeds=[2]))
    other = engine.Engine(wavy(EDM(), SHAPE), sampler=HEUN, graph="off")
    prepared.sample(seeds=[1], callback=lambda progress: other.sample(seeds=[2]))


def test_arguments_of_callbacks():
    prepared = engine.Engine(wavy(EDM(), SHAPE), sampler=HEUN)
    with pytest.raises(ValueError, match="callback is 3; allowed: a function"):
        prepared.sample(seeds=[1], callback=3)
    with pytest.raises(ValueError, match="callback_every is 0; allowed: an integer from 1"):
        prepared.sample(seeds=[1], callback_every=0)
    with pytest.raises(ValueError, match="callback is given; allowed: None, with the adaptive"):
        prepared.sample(seeds=[1], callback=print, sampler=engine.samplers.rk45())


def test_stream_of_the_package():
    denoiser = wavy(EDM(), SHAPE)
    parts = list(engine.stream(denoiser, seeds=range(5), sampler=HEUN, batch_size=2))
    assert [positions for positions, _ in parts] == [(0, 1), (2, 3), (4,)]
    images = engine.sample(denoiser, seeds=range(5), sampler=HEUN, batch_size=2)
    assert torch.equal(torch.cat([part for _, part in parts]), images)
    prepared = engine.Engine(denoiser, sampler=HEUN)
    with pytest.raises(TypeError, match=r"stream\(\) got an unexpected keyword argument 'sedes'"):
        engine.stream(denoiser, sedes=[1])
    for call in (prepared.sample, prepared.stream, prepared.stream_uint8, prepared.labels):
        with pytest.raises(TypeError, match=rf"^{call.__name__}\(\) got an unexpected keyword argument 'sedes'$"):
            call(sedes=[1])
    with pytest.raises(TypeError, match=r"^invert\(\) got an unexpected keyword argument 'seeds'$"):
        engine.invert(denoiser, images, seeds=[1])
    with pytest.raises(ValueError, match="batch_size is 0; allowed: an integer from 1, 'auto', or None"):
        engine.stream(denoiser, seeds=[1], batch_size=0)


def test_bytes_on_the_host_are_those_of_the_images(graph):
    prepared = engine.Engine(wavy(EDM(), SHAPE), sampler=HEUN, graph=graph, batch_size=3)
    images = prepared.sample(seeds=range(7))
    drawn = torch.cat([part for _, part in prepared.stream_uint8(seeds=range(7))])
    assert torch.equal(drawn, engine.to_uint8(images))
    last = list(prepared.stream_uint8(seeds=range(7), batches=[2]))
    assert [positions for positions, _ in last] == [(6,)]
    assert torch.equal(last[0][1], engine.to_uint8(images[6:]))


class Hungry(nn.Module):
    """Takes batches of up to ``most`` only, as a device of little memory does."""

    def __init__(self, most):
        super().__init__()
        self.most, self.sizes = most, []
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, c_noise):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return x * self.gain / (1 + x.abs())


def hungry(most, **options):
    denoiser = Denoiser(Hungry(most), EDM(), img_shape=SHAPE)
    return engine.Engine(denoiser, sampler=HEUN, batch_size=8, **options)


def test_a_batch_that_does_not_fit_is_halved_once_and_says_so(graph):
    prepared, roomy = hungry(4, graph=graph), hungry(8, graph="off")
    expected = roomy.sample(seeds=range(19))
    with pytest.warns(RuntimeWarning, match="batches of 8 do not fit into the memory of cpu; drawing 4 at a time"):
        drawn = [images for _, images in prepared.stream(seeds=range(19))]
    assert [len(images) for images in drawn] == [8, 8, 3]  # files of a job are named by its batches
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(prepared.sample(seeds=range(19)), expected)  # without a warning
    assert prepared.denoiser.model.sizes.count(8) == 1


def test_what_does_not_fit_at_half_the_size_is_an_error(graph):
    with (
        pytest.warns(RuntimeWarning, match="drawing 4 at a time"),
        pytest.raises(torch.OutOfMemoryError, match="out of memory"),
    ):
        hungry(2, graph=graph).sample(seeds=range(8))
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        hungry(0, graph=graph).sample(seeds=[1])


class Crowded(Hungry):
    """Three samples fit only where no graphs of other batches take the memory."""

    crowd = staticmethod(lambda: ())

    def forward(self, x, c_noise):
        if len(x) == 3 and len(self.crowd()) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, c_noise)


def test_graphs_of_other_batches_make_room_first(graph):
    prepared = engine.Engine(Denoiser(Crowded(8), EDM(), img_shape=SHAPE), sampler=HEUN, batch_size=8, graph=graph)
    expected = engine.sample(prepared.source, sampler=HEUN, seeds=range(8))
    prepared.denoiser.model.crowd = lambda: prepared.captures
    for _ in range(2):
        assert torch.equal(prepared.sample(seeds=range(8)), expected)
    assert torch.equal(prepared.sample(seeds=range(3)), expected[:3])  # and no warning that batches are smaller now
    assert torch.equal(prepared.sample(seeds=range(8)), expected)


class Breaking(Hungry):
    """Also gives infinity for a sample whose first pixel is large, but not in float32."""

    @property
    def dtype(self):
        return self.gain.dtype

    def forward(self, x, c_noise):
        factor = torch.where(x[:, :1, :1, :1].abs() > 0.6, 60000.0 if x.dtype == torch.float16 else 0.0, 0.0)
        return super().forward(x, c_noise) + factor.to(x.dtype) * 60000


def test_a_sample_that_is_not_finite_where_memory_is_short(graph):
    """It is drawn again in float32, in batches that fit."""
    denoiser = Denoiser(Breaking(4), EDM(), img_shape=SHAPE)
    options = {"sampler": HEUN, "dtype": torch.float16, "batch_size": 8, "on_nonfinite": "rerun"}
    prepared = engine.Engine(denoiser, graph=graph, **options)
    with pytest.warns(RuntimeWarning) as told:
        drawn = prepared.sample(seeds=range(8))
    assert [str(each.message)[:20] for each in told if "drawing 4" in str(each.message)]
    assert any("run again in float32" in str(each.message) for each in told)
    assert all(each.filename == __file__ for each in told)  # warnings point at the caller
    assert torch.isfinite(drawn).all()


def test_padding_counts_where_memory_is_short(graph):
    """One sample in a bucket of 8 does not fit; in one of 4 it does, and larger jobs then come in fours."""
    prepared = hungry(4, graph=graph, buckets=[8])
    with pytest.warns(RuntimeWarning, match="batches of 8 do not fit .* drawing 4 at a time"):
        drawn = prepared.sample(seeds=[3])
    assert torch.equal(drawn, hungry(8, graph="off").sample(seeds=[3]))
    assert torch.equal(prepared.sample(seeds=range(7)), hungry(8, graph="off").sample(seeds=range(7)))
    assert max(prepared.denoiser.model.sizes[1:]) == 4


def test_two_threads_that_run_out_of_memory_at_once():
    denoiser = Denoiser(Hungry(4), EDM(), img_shape=SHAPE)
    prepared = engine.Engine(denoiser, sampler=HEUN, batch_size=8, graph="off")
    both, forward = threading.Barrier(2, timeout=30), Hungry.forward
    expected, found, errors = hungry(8, graph="off").sample(seeds=range(8)), [], []

    def together(self, x, c_noise):
        if len(x) == 8:
            both.wait()
        return forward(self, x, c_noise)

    def draw():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(prepared.sample(seeds=range(8)))
        except Exception as error:
            errors.append(error)

    prepared.denoiser.model.forward = types.MethodType(together, prepared.denoiser.model)
    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(drawn, expected) for drawn in found)
    assert len(found) == 2


def test_what_does_not_fit_gives_its_graphs_back(replay):
    prepared = hungry(4, graph="loop")
    prepared.sample(seeds=range(2))
    with pytest.warns(RuntimeWarning, match="drawing 4 at a time"):
        prepared.sample(seeds=range(8))
    assert [each.batch for each in prepared.captures] == [4]


def test_the_largest_batch_that_fits():
    def cost(batch):
        return 1000 + 100 * (batch - 1)

    assert largest_fitting(cost, 10_000) == 64  # 7,300 of the 8,000 that leave a margin; 128 would take 13,700
    assert largest_fitting(cost, 8_000) == 32  # 64 would leave 700 of 8,000
    assert largest_fitting(cost, 0) == 1
    assert largest_fitting(cost, 10**9) == 1024
    assert largest_fitting(lambda batch: 5, 10**9, most=16) == 16


def test_automatic_batch_size(monkeypatch):
    prepared = engine.Engine(wavy(EDM(), SHAPE), batch_size="auto")
    assert prepared.batch_size == 64  # a CPU's
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000_000, 1 << 40))
    found = fitting_batch(prepared.denoiser, torch.device("cuda"))
    each = 48 * 144 + 4 * 144 * 2  # the state, and at least the network's input and output
    assert 1 <= found * each <= 0.8 * 2_000_000
    assert found > 16


def test_buckets():
    assert buckets_of(None, 64, CPU) == ()
    assert buckets_of(None, 48, torch.device("cuda")) == (1, 2, 4, 8, 16, 32, 48)
    assert buckets_of([16, 4], 64, CPU) == (4, 16, 64)
    assert buckets_of((), 64, torch.device("cuda")) == ()
    for wrong in ([128], 5, "ab", [2.0]):
        with pytest.raises(ValueError, match=r"buckets is .*; allowed: integers from 1 to batch_size = 64, or None"):
            buckets_of(wrong, 64, CPU)


def test_several_engines_draw_side_by_side(monkeypatch):
    """Each with a capture of its own; a batch of one runs while batches of the others do."""
    monkeypatch.setitem(CAPTURES, "cpu", lambda device: Replay())
    denoisers = {scale: wavy(EDM(), SHAPE) for scale in (0.1, 0.5, 0.9)}
    for scale, denoiser in denoisers.items():
        denoiser.model.gain.data.fill_(scale)
    engines = {scale: engine.Engine(each, sampler=HEUN, graph="off") for scale, each in denoisers.items()}
    expected, found = {scale: each.sample(seeds=range(4)) for scale, each in engines.items()}, {}
    inside = threading.Barrier(len(denoisers), timeout=30)

    def draw(scale):
        mine = engine.Engine(denoisers[scale], sampler=HEUN)
        met = mine.sample(seeds=range(4), callback=lambda progress: inside.wait())
        found[scale] = [met, *(mine.sample(seeds=range(4)) for _ in range(5))]

    threads = [threading.Thread(target=draw, args=[scale]) for scale in denoisers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(denoisers)
    assert all(torch.equal(images, expected[scale]) for scale, drawn in found.items() for images in drawn)
