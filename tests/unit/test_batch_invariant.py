"""batch_invariant=True: an image has the bits it has alone, whatever it is drawn with."""

import warnings

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import engine
from engine.cli import cli
from engine.preconditioning import EDM
from tests.helpers import small_unet


class Batchy(nn.Module):
    """A network whose bits depend on its batch: beyond ``most`` samples it adds up in another order."""

    label_dim = 0

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, c_noise):
        self.seen.append(len(x))
        parts = [x * self.weight, c_noise[:, None, None, None] * 0.1, x * x * 0.01]
        a, b, c = parts if len(x) <= self.most else reversed(parts)
        return a + b + c


def images_of(made, seeds):
    return made.sample(seeds=seeds, sampler=engine.samplers.edm(steps=4, S_churn=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_our_networks_keep_their_bits_in_any_batch(dtype):
    options = {"class_labels": 1, "sampler": engine.samplers.edm(steps=3, S_churn=3)}
    denoiser = small_unet(label_dim=3)
    alone = engine.Engine(denoiser, dtype=dtype, batch_size=1)
    images = {seed: alone.sample(seeds=[seed], **options)[0] for seed in range(7)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a processor whose convolutions do depend on the batch: slower, as exact
        together = engine.Engine(denoiser, dtype=dtype, batch_size=5, batch_invariant=True)
    for seeds in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 4], [5]):
        drawn = together.sample(seeds=seeds, **options)
        assert all(torch.equal(image, images[seed]) for seed, image in zip(seeds, drawn, strict=True))


@pytest.mark.parametrize("most", [1, 2, 5])
def test_other_networks_are_cut_into_batches_that_agree(most):
    network = Batchy(most)
    denoiser = engine.Denoiser(network, EDM(), img_shape=(1, 4, 4))
    alone = images_of(engine.Engine(denoiser, batch_size=1), range(8))
    assert not torch.equal(images_of(engine.Engine(denoiser, batch_size=8), range(8)), alone)
    with pytest.warns(UserWarning, match=r"batch_invariant: batches of .*8 give other bits .* evaluating \d at a time"):
        made = engine.Engine(denoiser, batch_size=8, batch_invariant=True)
    made.denoiser.model.network.seen.clear()
    assert torch.equal(images_of(made, range(8)), alone)
    assert max(made.denoiser.model.network.seen) == {1: 1, 2: 2, 5: 4}[most]


def test_guiding_networks_too():
    denoiser, guide = small_unet(label_dim=3), small_unet(label_dim=3, seed=1)
    guidance = engine.guidance.AutoGuidance(weight=2.0, guide=guide)
    options = {"class_labels": 1, "sampler": engine.samplers.edm(steps=3)}
    alone = engine.Engine(denoiser, batch_size=1, guidance=guidance).sample(seeds=[3], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = engine.Engine(denoiser, batch_size=4, guidance=guidance, batch_invariant=True)
    assert torch.equal(made.sample(seeds=[1, 2, 3], **options)[2:], alone)
    by_classifier = engine.guidance.ClassifierGuidance(1.0, gradient=lambda x, sigma, labels: x)
    with pytest.raises(ValueError, match="guidance is ClassifierGuidance; allowed: others, with batch_invariant=True"):
        made.sample(seeds=[1], guidance=by_classifier, **options)


def test_on_the_command_line(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("engine.engine.make_batch_invariant", lambda denoiser, batch_size: asked.append(batch_size))
    command = ["sample", "--model", "fashion-mnist", "--seeds", "0-2", "--class", "0-9", "--steps", "1", "--batch", "3"]
    for options in ([], ["--batch-invariant"]):
        result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / str(len(options))), *options])
        assert result.exit_code == 0, result.output
    assert asked == [3]
