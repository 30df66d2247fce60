"""The trainer: the paper's loss, augmentation that does not leak, resuming to the same bits."""

import json
import math
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Denoiser
from engine.networks.precision import cast_network
from engine.training import Augment, EDMLoss, Log, TrainConfig, Trainer
from engine.training.presets import PRESETS

NETWORK = {
    "class_name": "EDMPrecond",
    "img_resolution": 16,
    "img_channels": 1,
    "label_dim": 2,
    "model_type": "SongUNet",
    "model_channels": 32,  # wide enough for Muon to take the convolutions
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "augment_dim": 9,
    "dropout": 0.0,
}


def trainer(**options):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = (labels * 2.0 - 1)[:, None, None, None] * 0.8 + 0.1 * torch.randn(40, 1, 16, 16, generator=generator)
    device = options.pop("device", "cpu")
    config = TrainConfig(
        **{"network": NETWORK, "batch_size": 8, "images": 960, "warmup_images": 80, "dtype": "float32"} | options
    )
    return Trainer(config, images.clamp(-1, 1), labels, device=device, compile=False)


@pytest.mark.parametrize("muon_lr", [0.02, None])
def test_training_learns(muon_lr):
    learner = trainer(muon_lr=muon_lr)
    losses = [record["loss"] for record in learner.run()]
    assert learner.step == 120
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_muon_takes_the_wide_convolutions():
    learner = trainer()
    before = {name: p.detach().clone() for name, p in learner.master.named_parameters()}
    list(learner.run(8))
    moved = []
    lr = learner.config.muon_lr * learner._lr_factor() / 2  # the factor of the step before: 1 of 10, not 2
    for name, parameter in learner.master.named_parameters():
        change = parameter.detach() - before[name]
        if parameter.dim() == 4 and min(parameter.shape[:2]) >= 32:  # orthogonalised: no direction moves more than lr
            rows, columns = change.flatten(1).shape
            largest = torch.linalg.matrix_norm(change.flatten(1).double(), 2) / max(1, rows / columns) ** 0.5
            moved.append(largest.item() / lr)
        else:  # Adam's first step is lr for every element that has a gradient
            assert change.abs().max() <= 1.01 * learner.config.adam_lr, name
    assert max(moved) < 1.3
    assert np.median(moved) > 0.5


@pytest.mark.parametrize("changes", [{"label_dim": 0}, {"model_channels": 8}], ids=["no classes", "narrow"])
def test_small_networks_train_and_resume(changes, tmp_path):
    """One that takes no labels, though the images have some; one that leaves Muon nothing."""
    learner, again = trainer(network=NETWORK | changes), trainer(network=NETWORK | changes)
    assert [math.isfinite(record["loss"]) for record in learner.run(16)] == [True, True]
    learner.save(tmp_path / "checkpoint.pt")
    again.resume(tmp_path / "checkpoint.pt")
    assert again.train_step() == learner.train_step()


def test_gradients_lie_in_memory_as_their_parameters():
    """Fused Adam pairs elements by address: channels_last gradients once scrambled its updates, yet it learned."""
    learner = trainer(muon_lr=None)
    list(learner.run(8))
    for name, parameter in learner.master.named_parameters():
        assert parameter.grad is None or parameter.grad.stride() == parameter.stride(), name
    before = {name: p.detach().clone() for name, p in learner.master.named_parameters()}
    moments = {id(p): learner.optimizer._parts["adam"][0].state[p] for p in learner.master.parameters()}
    first = {i: {k: v.clone() for k, v in state.items()} for i, state in moments.items()}
    list(learner.run(16))
    lr = learner.config.adam_lr * 2 / 10
    for name, p in learner.master.named_parameters():
        if p.grad is not None and id(p) in first and first[id(p)]:
            m = 0.9 * first[id(p)]["exp_avg"] + 0.1 * p.grad
            v = 0.999 * first[id(p)]["exp_avg_sq"] + 0.001 * p.grad**2
            expected = before[name] - lr * (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)).sqrt() + 1e-8)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-7, msg=name)


def test_a_loss_that_is_not_finite_stops_the_run():
    learner = trainer()
    with torch.no_grad():
        next(learner.worker.parameters()).fill_(torch.nan)
    before = {name: p.detach().clone() for name, p in learner.master.named_parameters()}
    with pytest.raises(ArithmeticError, match="step 0 of seed 0: the loss is nan"):
        list(learner.run(8))
    assert all(torch.equal(p, before[name]) for name, p in learner.master.named_parameters())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"network": NETWORK | {"label_dim": 1}}, "labels contains 1; allowed: 0 to 0"),
        ({"device": "foo"}, "device is 'foo'; allowed: 'cpu'"),
        ({"images": 0}, "images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 64}, "batch_size is 64; allowed: at most the 40 images"),
        ({"warmup_images": 0}, "warmup_images is 0"),
        ({"anneal": 2.0}, "anneal is 2.0; allowed: a fraction"),
        ({"seed": 2**40}, "seed is"),
    ],
)
def test_bad_configs_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        trainer(**option)


def test_learning_rates_rise_and_fall():
    learner = trainer(anneal=0.5)
    factors = []
    for learner.step in range(120):
        factors.append(learner._lr_factor())
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10:60] == [1.0] * 50
    assert factors[60:] == pytest.approx([1 - step / 60 for step in range(60)])


def test_the_shipped_training_draws_and_computes_what_it_did():
    """Written out as the shipped network was trained: the same numbers in the same order, to the bit."""
    images = torch.rand(40, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(40) % 10
    config = replace(PRESETS["fashion-mnist"], batch_size=4, dtype="float32")
    shipped = Trainer(config, images, labels, compile=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        denoiser = Denoiser.from_config(PRESETS["fashion-mnist"].network)
    cast_network(denoiser.model, torch.float32)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1 << 31))
    for step in range(2):
        denoiser.load_state_dict(shipped.master.state_dict())
        index = order[4 * step :][:4]
        generator = torch.Generator().manual_seed(step)
        y, augment_labels = Augment(p=0.04, flip_p=0.04)(images[index], generator)
        eps = torch.randn(4, 1, 32, 32, generator=generator)
        sigma = (torch.randn(4, generator=generator) * 1.2 - 1.2).exp()
        weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
        x = y + eps * sigma[:, None, None, None]
        D = denoiser(x, sigma, torch.nn.functional.one_hot(labels[index], 10).float(), augment_labels)
        expected = (weight * (D - y).square().flatten(1).mean(1)).mean()
        assert shipped.train_step() == expected.item()
        expected.backward()
        gradients = [(p.grad, q.grad) for p, q in zip(denoiser.parameters(), shipped.master.parameters(), strict=True)]
        assert all(torch.equal(own, theirs) for own, theirs in gradients if theirs is not None)
        denoiser.zero_grad()


@contextmanager
def one_thread():
    """On more, convolutions add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_KILLED = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.unit.test_training import trainer
learner = trainer(dtype="bfloat16")
for record in learner.run():
    learner.save(Path(sys.argv[1]))
    print(record["step"], flush=True)
"""


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """SIGKILL while checkpoints are written one after another: whichever is there is whole."""
    checkpoint = tmp_path / "checkpoint.pt"
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, checkpoint], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 4:
            pass
        process.kill()
    resumed, straight = trainer(dtype="bfloat16"), trainer(dtype="bfloat16")
    resumed.resume(checkpoint)
    assert resumed.step >= 4
    until = resumed.images_seen + 24
    with one_thread():
        for learner in (resumed, straight):
            list(learner.run(until))
    for kind in ("master", "ema"):
        expected, got = (getattr(t, kind).state_dict() for t in (straight, resumed))
        assert all(torch.equal(expected[key], got[key]) for key in expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_continues_to_the_same_bits(dtype, tmp_path):
    straight = trainer(dtype=dtype)
    list(straight.run(80))
    first = trainer(dtype=dtype)
    list(first.run(40))
    first.save(tmp_path / "checkpoint.pt")
    second = trainer(dtype=dtype)
    second.resume(tmp_path / "checkpoint.pt")
    assert second.images_seen == 40
    list(second.run(80))
    for kind in ("master", "ema"):
        expected, got = (getattr(t, kind).state_dict() for t in (straight, second))
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_the_log_of_a_killed_run_has_no_line_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    first = Log(path, every=2)
    for step in range(1, 7):
        first.add({"step": step, "images": 8 * step, "loss": float(step)}, 8)
    with path.open("a") as file:
        file.write('{"step": 8, "im')  # torn
    second = Log(path, every=2, images_seen=32)
    for step in (5, 6):
        second.add({"step": step, "images": 8 * step, "loss": float(step)}, 8)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["images"], line["loss"]) for line in lines] == [(16, 1.5), (32, 3.5), (48, 5.5)]


def test_a_log_loses_no_step_of_a_run_that_ends(tmp_path):
    log = Log(tmp_path / "log.jsonl", every=2)
    for images in (16, 32, 48):
        log.add({"loss": float(images), "images": images}, 16)
    log.flush()
    log.flush()  # there is nothing since
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["images"], line["loss"]) for line in lines] == [(32, 24.0), (48, 48.0)]
    assert all(line["images_per_second"] > 0 for line in lines)


def test_dropped_labels_are_a_network_without_labels():
    """As often as asked for, and from (seed, step) alone; an engine's network, in eval mode, drops none."""
    seen = []
    learner = trainer(network=NETWORK | {"label_dropout": 0.25}, images=4000)
    learner.worker.model.map_label.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    list(learner.run(2400))
    dropped = (torch.cat(seen) == 0).all(1)
    assert len(dropped) == 2400
    assert abs(dropped.double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 2400) ** 0.5
    again = trainer(network=NETWORK | {"label_dropout": 0.25}, images=4000)
    again.step = 7  # whatever was drawn before
    kept = seen[7]
    again.worker.model.map_label.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    again.train_step()
    assert torch.equal(seen[-1], kept)
    seen.clear()
    learner.ema.model.map_label.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    learner.ema(torch.zeros(64, 1, 16, 16), 1.0, torch.eye(2).repeat(32, 1))
    assert (torch.cat(seen) != 0).any(1).all()


def test_another_config_is_refused(tmp_path):
    trainer().save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="was trained with another muon_lr, adam_lr"):
        trainer(adam_lr=1.0, muon_lr=None).resume(tmp_path / "checkpoint.pt")
    longer = trainer(images=2000)
    longer.resume(tmp_path / "checkpoint.pt")
    assert longer.runs == [(0, 960), (0, 2000)]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:1000], lambda data: b"", lambda data: b"PK" + data[1000:], lambda data: data[:-200]]
)
def test_a_damaged_checkpoint_is_refused_by_name(damage, tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of a training run") as error:
        trainer().resume(path)
    assert len(str(error.value).splitlines()) == 1
    torch.save({"config": {}}, path)
    with pytest.raises(ValueError, match="it has no ema, master, optimizer, step"):
        trainer().resume(path)


def test_epochs_visit_every_image_once():
    learner = trainer()
    first, second = ([learner._indices(step) for step in range(a, a + 5)] for a in (0, 5))
    assert torch.cat(first).sort().values.tolist() == list(range(40))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_loss_is_table_1():
    images, eps = torch.randn(2, 64, 1, 4, 4).unbind(0)
    sigma = EDMLoss().sigma(64, torch.Generator().manual_seed(0))
    seen = {}

    def denoiser(x, s, labels, augment):
        seen["noisy"] = x
        return x * 0

    loss = EDMLoss()(denoiser, images, eps, sigma, None, None)
    weight = (sigma.double() ** 2 + 0.25) / (sigma.double() * 0.5) ** 2
    torch.testing.assert_close(loss.double(), weight * images.double().square().mean((1, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(seen["noisy"], images + sigma[:, None, None, None] * eps)
    many = EDMLoss().sigma(200_000, torch.Generator().manual_seed(1)).log()
    assert many.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert many.std().item() == pytest.approx(1.2, abs=0.02)


def test_fewer_flips():
    _, labels = Augment(p=0.0, flip_p=0.1)(torch.zeros(5000, 1, 4, 4), torch.Generator().manual_seed(0))
    assert labels[:, 0].mean().item() == pytest.approx(0.1, abs=0.02)
    assert not labels[:, 1:].any()


def test_no_augmentation_at_zero_conditioning():
    images = torch.rand(400, 1, 32, 32) * 2 - 1
    out, labels = Augment(p=0.12)(images, torch.Generator().manual_seed(0))
    assert labels.shape == (400, 9)
    untouched = labels.abs().sum(1) == 0
    assert 0.2 < untouched.float().mean() < 0.4  # 0.5 (flip) * 0.88^4 * (1 - 0.06)
    assert torch.equal(out[untouched], images[untouched])
    changed = (out != images).flatten(1).any(1)
    assert torch.equal(changed, ~untouched)  # and no transform without a label


def test_augmentations_move_pixels_where_they_say():
    image = torch.full((1, 1, 32, 32), -1.0)
    image[:, :, 10:14, 18:22] = 1.0  # a blob up and to the right, far from the border that is reflected
    images = image.expand(3000, 1, 32, 32).clone()
    out, labels = Augment(p=0.3)(images, torch.Generator().manual_seed(0))
    grid = torch.arange(32) + 0.5 - 16
    mass = (out + 1).clamp(min=0)
    x = (mass * grid).sum((1, 2, 3)) / mass.sum((1, 2, 3))
    y = (mass * grid[:, None]).sum((1, 2, 3)) / mass.sum((1, 2, 3))

    def only(*columns):
        rest = [c for c in range(9) if c not in columns]
        return (labels[:, rest] == 0).all(1) & (labels[:, list(columns)] != 0).any(1)

    torch.testing.assert_close(x[only(0)], torch.full_like(x[only(0)], -4.0), rtol=0, atol=0.01)
    torch.testing.assert_close(y[only(1)], torch.full_like(y[only(1)], 4.0), rtol=0, atol=0.01)
    small = only(7, 8) & (labels[:, 7:].abs().amax(1) < 0.8)
    assert small.sum() > 20
    torch.testing.assert_close(x[small], 4 + 4 * labels[small, 7], rtol=0, atol=0.1)
    torch.testing.assert_close(y[small], -4 + 4 * labels[small, 8], rtol=0, atol=0.1)
    shrunk = only(2) & (labels[:, 2] < 0) & (labels[:, 2] > -2)
    torch.testing.assert_close(x[shrunk], 4 * 2 ** (0.2 * labels[shrunk, 2]), rtol=0, atol=0.1)
    turned = only(3, 4) & (labels[:, 3] > -0.8)
    cos, sin = labels[turned, 3] + 1, labels[turned, 4]
    torch.testing.assert_close(x[turned], 4 * cos + 4 * sin, rtol=0, atol=0.1)
    assert math.isclose(labels[:, 0].mean(), 0.5, abs_tol=0.05)
