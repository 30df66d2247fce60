"""Every loss against its column of Table 1: what is drawn, how it is weighted, and the loss as a plain loop."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import engine
from engine import preconditioning as pre
from engine.networks.precision import cast_network
from engine.training import DiscreteLoss, EDMLoss, IDDPMLoss, TrainConfig, Trainer, VELoss, VPLoss, loss_for
from engine.training.presets import FASHION_MNIST, LOSSES, with_loss

DRAWS = 20_000


def draws(loss):
    sigma = loss.sigma(DRAWS, torch.Generator().manual_seed(0))
    assert sigma.dtype == torch.float32
    assert sigma.shape == (DRAWS,)
    return sigma.double().numpy()


@pytest.mark.parametrize(
    ("loss", "uniform"),
    [
        # Each maps sigma to what the paper says is uniform on [0, 1], or has that distribution function.
        (EDMLoss(), lambda sigma: stats.norm.cdf((np.log(sigma) + 1.2) / 1.2)),
        (EDMLoss(P_mean=0.4, P_std=0.3), lambda sigma: stats.norm.cdf((np.log(sigma) - 0.4) / 0.3)),
        # sigma = sqrt(exp(9.95 t^2 + 0.1 t) - 1) solved for t
        (VPLoss(), lambda sigma: (np.sqrt(0.01 + 2 * 19.9 * np.log1p(sigma**2)) - 0.1) / 19.9),
        (VELoss(), lambda sigma: np.log(sigma / 0.02) / np.log(100 / 0.02)),
        (VELoss(pre.VE(sigma_min=0.1, sigma_max=10)), lambda sigma: np.log(sigma / 0.1) / np.log(100)),
    ],
)
def test_noise_levels_have_the_distribution_of_table_1(loss, uniform):
    assert stats.kstest(uniform(draws(loss)), "uniform").pvalue > 1e-3


def test_vp_reaches_its_lowest_level():
    loss = VPLoss(pre.VP(epsilon_t=0.5))
    assert draws(loss).min() == pytest.approx(math.sqrt(math.exp(9.95 * 0.25 + 0.05) - 1), rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "levels"),
    [
        (IDDPMLoss(pre.IDDPM(M=20)), pre.IDDPM(M=20).levels()[:-1]),  # u_M = 0 is no level to train
        (DiscreteLoss(pre.Discrete(T=20, prediction="v", zero_snr=True)), pre.Discrete(T=20, zero_snr=True).levels()),
        (DiscreteLoss(pre.Discrete(T=20, prediction="epsilon")), pre.Discrete(T=20).levels()),
    ],
)
def test_discrete_noise_levels_are_equally_frequent(loss, levels):
    found, counts = np.unique(draws(loss), return_counts=True)
    assert np.array_equal(found, np.sort(levels.float().double().numpy()))
    assert stats.chisquare(counts).pvalue > 1e-3


SIGMA = torch.tensor([0.02, 0.5, 3.0, 80.0])


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (EDMLoss(sigma_data=0.3), lambda sigma: (sigma**2 + 0.09) / (sigma * 0.3) ** 2),
        (VPLoss(), lambda sigma: sigma**-2),
        (VELoss(), lambda sigma: sigma**-2),
        (IDDPMLoss(), lambda sigma: sigma**-2),
        (DiscreteLoss(), lambda sigma: 1 + sigma**-2),
        (DiscreteLoss(pre.Discrete(prediction="epsilon")), lambda sigma: sigma**-2),
        (DiscreteLoss(pre.Discrete(prediction="sample")), lambda sigma: sigma**0),
    ],
)
def test_weights(loss, weight):
    torch.testing.assert_close(loss.weight(SIGMA).double(), weight(SIGMA.double()), rtol=1e-5, atol=0)
    if isinstance(loss.preconditioning, pre.EDM | pre.VP | pre.VE):
        # What the weights of Table 1 are for: F is asked for the same error at every level, lambda = 1 / c_out^2.
        c_out = loss.preconditioning.coefficients(SIGMA).c_out
        torch.testing.assert_close(loss.weight(SIGMA) * c_out**2, torch.ones(4), rtol=1e-5, atol=0)


class Affine(torch.nn.Module):
    """A network with an answer that can be written down: F = a x + b c_noise."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(value)) for value in (0.7, 0.01))

    def forward(self, x, c_noise):
        return self.a * x + self.b * c_noise[:, None, None, None]


def by_hand(name, y, n, sigma, a, b):
    """The loss of one sample as its own paper writes it, in float64; n has standard deviation 1."""
    if name == "edm":
        c_in, c_noise = 1 / math.sqrt(sigma**2 + 0.25), math.log(sigma) / 4
        F = a * c_in * (y + sigma * n) + b * c_noise
        target = (y - 0.25 / (sigma**2 + 0.25) * (y + sigma * n)) * math.sqrt(sigma**2 + 0.25) / (sigma * 0.5)
    elif name == "ve":  # Song et al. 2021: the score times sigma is -n
        F, target = a * (y + sigma * n) + b * math.log(sigma / 2), -n
    elif name == "vp":  # x_t = sqrt(alpha_bar) y + sqrt(1 - alpha_bar) n; the network predicts n
        t = (math.sqrt(0.01 + 2 * 19.9 * math.log1p(sigma**2)) - 0.1) / 19.9
        F, target = a * (y + sigma * n) / math.sqrt(1 + sigma**2) + b * 999 * t, n
    elif name == "iddpm":
        j = (pre.IDDPM().levels().double() - sigma).abs().argmin().item()
        F, target = a * (y + sigma * n) / math.sqrt(1 + sigma**2) + b * (999 - j), n
    else:  # v = sqrt(alpha_bar) n - sqrt(1 - alpha_bar) y; alpha_bar is 0 at the end
        t = (pre.Discrete(zero_snr=True).levels().float().tolist()).index(sigma)
        root, rest = 1 / math.sqrt(1 + sigma**2), 1 / math.sqrt(1 + sigma**-2)
        F, target = a * (root * y + rest * n) + b * t, root * n - rest * y
    return (F - target).square().mean()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_a_plain_loop(name):
    loss, generator = LOSSES[name][0], torch.Generator().manual_seed(1)
    y, n = torch.randn(2, 16, 1, 4, 4, generator=generator).unbind(0)
    sigma = loss.sigma(16, generator).clamp(min=0.02 if name in ("vp", "edm") else 0)  # below, float32 loses y + n
    if name == "discrete":
        sigma[:2] = math.inf
    denoiser = engine.Denoiser(Affine(), loss.preconditioning, img_shape=(1, 4, 4))
    got = loss(denoiser, y, n, sigma, None, None)
    got.mean().backward()
    a, b = (torch.tensor(p.item(), dtype=torch.float64, requires_grad=True) for p in denoiser.parameters())
    samples = zip(y.double(), n.double(), sigma.tolist(), strict=True)
    expected = torch.stack([by_hand(name, *sample, a, b) for sample in samples])
    expected.mean().backward()
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=1e-5)
    for parameter, exact in zip(denoiser.parameters(), (a, b), strict=True):
        torch.testing.assert_close(parameter.grad.double(), exact.grad, rtol=2e-3, atol=1e-5)


def small(name, **options):
    network = {"img_resolution": 8, "channel_mult": [1], "attn_resolutions": [], "label_dim": 2, "model_channels": 16}
    config = with_loss(FASHION_MNIST, name)
    labels = torch.arange(40) % 2
    images = (labels * 2.0 - 1)[:, None, None, None] * 0.8 + 0.1 * torch.randn(
        40, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    given = {"batch_size": 8, "images": 320, "warmup_images": 40, "adam_lr": 5e-3, "muon_lr": None, **options}
    config = TrainConfig(network=config.network | network, loss=config.loss, **given)
    return Trainer(config, images.clamp(-1, 1), labels, compile=False)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in LOSSES), ("vp", "float32")])
def test_every_loss_falls_in_either_precision(name, dtype):
    learner = small(name, dtype=dtype)
    assert isinstance(learner.master.preconditioning, type(learner.config.loss.preconditioning))
    losses = [record["loss"] for record in learner.run()]
    assert np.median(losses[-12:]) < 0.7 * np.median(losses[:6])
    for kept in (learner.master, learner.ema):
        assert {p.dtype for p in kept.parameters()} == {torch.float32}
    states = [s for part, _ in learner.optimizer._parts.values() for s in part.state.values()]
    assert {v.dtype for s in states for v in s.values() if v.is_floating_point()} == {torch.float32}
    computes = {p.dtype for p in learner.worker.model.enc.parameters() if p.dim() == 4}
    assert computes == {getattr(torch, dtype)}
    expected = cast_network(learner.master, getattr(torch, dtype))  # the copy is the rounded master, never its own
    pairs = zip(expected.parameters(), learner.worker.parameters(), strict=True)
    assert all(torch.equal(master, worker) for master, worker in pairs)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_resumes_to_the_same_bits(name, tmp_path):
    straight, first, second = (small(name, dtype="bfloat16") for _ in range(3))
    list(straight.run(48))
    list(first.run(24))
    first.save(tmp_path / "checkpoint.pt")
    second.resume(tmp_path / "checkpoint.pt")
    list(second.run(48))
    for kind in ("master", "ema"):
        expected, got = (getattr(t, kind).state_dict() for t in (straight, second))
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_loss_and_a_preconditioning_that_do_not_belong_together_are_refused():
    network = FASHION_MNIST.network | {"img_resolution": 8, "channel_mult": [1]}
    images, labels = torch.zeros(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64)
    for loss, message in [
        (VELoss(), r"loss is VELoss for a network with preconditioning EDM\(.*; allowed: VE\(sigma_min=0.02"),
        (EDMLoss(sigma_data=0.3), r"preconditioning EDM\(.*sigma_data=0.5\); allowed: EDM\(.*sigma_data=0.3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            Trainer(TrainConfig(network=network, loss=loss), images, labels, compile=False)
    with pytest.raises(ValueError, match="prediction is 'epsilon' with zero_snr"):
        DiscreteLoss(pre.Discrete(zero_snr=True))
    with pytest.raises(ValueError, match="dtype is 'float16'; allowed: 'float32', 'bfloat16'"):
        TrainConfig(network=network, dtype="float16")


def test_the_loss_of_a_network_by_its_preconditioning():
    for loss, _ in LOSSES.values():
        assert loss_for(loss.preconditioning) == loss
    assert loss_for(pre.EDM(sigma_min=0.002, sigma_max=80, sigma_data=0.3)) == EDMLoss(sigma_data=0.3)
    with pytest.raises(ValueError, match=r"preconditioning is Direct\("):
        loss_for(pre.Direct())


def test_another_loss_for_the_same_training():
    assert with_loss(FASHION_MNIST, "edm") == FASHION_MNIST
    there = with_loss(FASHION_MNIST, "discrete")
    assert there.network["prediction"] == "v"
    assert with_loss(there, "edm") == FASHION_MNIST
    assert with_loss(there, "iddpm") == with_loss(FASHION_MNIST, "iddpm")
