"""Table 1 of the EDM paper, written a second time in float64."""

import math
import re

import numpy as np
import pytest
import torch

from engine import Denoiser
from engine.networks import SongUNet
from engine.preconditioning import EDM, IDDPM, VE, VP, Direct, Discrete

SIGMA = torch.tensor([0.002, 0.03, 0.5, 1.0, 7.7, 80.0])


@pytest.mark.parametrize("sigma", SIGMA.tolist())
def test_formulas(sigma):
    def check(pre, c_skip, c_out, c_in, c_noise):
        got = [c.item() for c in pre.coefficients(torch.tensor([sigma], dtype=torch.float32))]
        assert got == pytest.approx([c_skip, c_out, c_in, c_noise], rel=2e-6, abs=2e-6)

    s2 = sigma**2
    root = math.sqrt(s2 + 0.25)
    check(EDM(), 0.25 / (s2 + 0.25), sigma * 0.5 / root, 1 / root, math.log(sigma) / 4)
    check(VE(), 1, sigma, 1, math.log(sigma / 2))
    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(s2)) - 0.1) / 19.9
    got = VP().coefficients(torch.tensor([sigma], dtype=torch.float32))
    assert [c.item() for c in got[:3]] == pytest.approx([1, -sigma, 1 / math.sqrt(s2 + 1)], rel=1e-6)
    assert got.c_noise.item() == pytest.approx(999 * t, rel=1e-3, abs=0.02)  # float32 log(1 + sigma^2)
    check(Direct(), 0, 1, 1, sigma)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EDM, {"sigma_data": 0}, "sigma_data is 0; allowed: a number above 0 and finite"),
        (EDM, {"sigma_data": -1.0}, "sigma_data is -1.0; allowed: a number above 0 and finite"),
        (EDM, {"sigma_data": "0.5"}, "sigma_data is '0.5'; allowed: a number above 0 and finite"),
        (EDM, {"sigma_data": True}, "sigma_data is True; allowed: a number above 0 and finite"),
        (EDM, {"sigma_min": 5, "sigma_max": 1}, "sigma_max is 1; allowed: a number above sigma_min = 5"),
        (VE, {"sigma_min": -1}, "sigma_min is -1; allowed: a finite number from 0"),
        (Direct, {"sigma_min": math.inf}, "sigma_min is inf; allowed: a finite number from 0"),
        (Direct, {"sigma_max": math.nan}, "sigma_max is nan; allowed: a number above sigma_min = 0.0"),
        (VP, {"M": 0}, "M is 0; allowed: an integer from 2"),
        (VP, {"beta_d": 0}, "beta_d is 0; allowed: a number above 0 and finite"),
        (VP, {"beta_min": -0.1}, "beta_min is -0.1; allowed: a finite number from 0"),
        (VP, {"epsilon_t": 1}, "epsilon_t is 1; allowed: a number between 0 and 1"),
        (IDDPM, {"M": 0}, "M is 0; allowed: an integer from 2 to 100000"),
        (IDDPM, {"M": 10.5}, "M is 10.5; allowed: an integer from 2 to 100000"),
        (IDDPM, {"M": 10**9}, "M is 1000000000; allowed: an integer from 2 to 100000"),
        (IDDPM, {"C_2": None}, "C_2 is None; allowed: a number above 0 and finite"),
        (Discrete, {"T": "5"}, "T is '5'; allowed: an integer from 2 to 100000"),
        (Discrete, {"T": 10**9}, "T is 1000000000; allowed: an integer from 2 to 100000"),
        (Discrete, {"scale": "1"}, "scale is '1'; allowed: a number above 0, up to 1"),
        (Discrete, {"zero_snr": "no"}, "zero_snr is 'no'; allowed: True, False"),
        (Discrete, {"prediction": []}, "prediction is []; allowed: 'epsilon', 'v', 'sample'"),
        (
            Discrete,
            {"schedule": ["linear"]},
            "schedule is ['linear']; allowed: 'linear', 'cosine', 'scaled-linear', 'sigmoid'",
        ),
        (Discrete, {"T": 3, "betas": 0.5}, "betas is 0.5; allowed: T = 3 numbers between 0 and 1"),
        (
            Discrete,
            {"T": 2, "betas": [0.1, 0.5], "scale": 0.5},
            "scale is 0.5; allowed: 1.0, unless betas is None",
        ),
        (
            Discrete,
            {"T": 2, "betas": [0.1, 0.5], "schedule": "cosine"},
            "schedule is 'cosine'; allowed: 'linear', unless betas is None",
        ),
        (IDDPM, {"C_1": 1e300}, "C_1 is 1e+300; allowed: a number between 0 and 1"),
        (Discrete, {"T": 2, "betas": ["a", 0.5]}, "betas has 2 entries; allowed: T = 2 of them, between 0 and 1"),
    ],
)
def test_what_is_no_preconditioning(kind, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind(**options)


def test_numbers_of_numpy_are_python_s():
    given = Discrete(T=np.int64(10), scale=np.float64(0.5)), EDM(sigma_data=np.float32(0.25)), IDDPM(M=np.int32(9))
    assert given == (Discrete(T=10, scale=0.5), EDM(sigma_data=0.25), IDDPM(M=9))
    assert "np." not in repr(given)


def test_vp_sigma_and_its_inverse():
    for t in (0.01, 0.3, 1.0):
        sigma = VP().sigma(t)
        assert sigma == pytest.approx(math.sqrt(math.exp(0.5 * 19.9 * t * t + 0.1 * t) - 1), rel=2e-5)
        assert VP().sigma_inv(torch.tensor(sigma, dtype=torch.float64)).item() == pytest.approx(t, rel=1e-4)
    assert (VP().sigma_min, VP().sigma_max) == (0.0009765625, pytest.approx(152.16697692871094, rel=1e-6))


def test_iddpm_levels_and_rounding():
    pre = IDDPM()
    u = pre.levels().double()
    assert len(u) == 1001
    assert u[-1] == 0
    assert (u[:-1] > u[1:]).all()
    # the closed form where the clip of the recursion is not active: sigma^2 = (1 - abar) / abar
    abar = torch.sin(torch.arange(1001, dtype=torch.float64) / 1000 * math.pi / 2 / 1.008) ** 2 / (
        math.sin(math.pi / 2 / 1.008) ** 2
    )
    torch.testing.assert_close(u[40:1000], ((1 - abar) / abar)[40:1000].sqrt(), rtol=2e-3, atol=0)
    between = (u[300] * 0.9 + u[301] * 0.1).reshape(1)
    assert pre.round_sigma(between).item() == u[300].item()
    assert pre.coefficients(u[[300, 999]].float()).c_noise.tolist() == [699, 0]
    assert (pre.sigma_min, pre.sigma_max) == (u[999].item(), u[0].item())


def test_from_config_builds_all_four_published_classes():
    tiny = {
        "img_resolution": 16,
        "img_channels": 3,
        "model_channels": 32,
        "channel_mult": [1],
        "num_blocks": 1,
    }
    for class_name, kind in {
        "VPPrecond": VP,
        "VEPrecond": VE,
        "iDDPMPrecond": IDDPM,
        "EDMPrecond": EDM,
    }.items():
        denoiser = Denoiser.from_config({"class_name": class_name, "model_type": "SongUNet", "label_dim": 2, **tiny})
        assert type(denoiser.preconditioning) is kind
        out = denoiser(torch.randn(2, 3, 16, 16), torch.tensor([0.5, 3.0]), torch.eye(2))
        assert out.shape == (2, 3, 16, 16)
        assert out.dtype == torch.float32
    assert (
        Denoiser.from_config({"class_name": "EDMPrecond", **tiny, "sigma_data": 0.7}).preconditioning.sigma_data == 0.7
    )


def test_denoiser_is_equation_7():
    config = {"class_name": "EDMPrecond", "img_resolution": 16, "img_channels": 1, "model_type": "SongUNet"}
    denoiser = Denoiser.from_config(config | {"model_channels": 8, "channel_mult": [1], "num_blocks": 1}).eval()
    assert any(key == "model.enc.16x16_block0.conv0.weight" for key in denoiser.state_dict())
    x, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.5, 3.0])
    c_skip, c_out, c_in, c_noise = (c[:, None, None, None] for c in denoiser.preconditioning.coefficients(sigma))
    expected = c_skip * x + c_out * denoiser.model(c_in * x, c_noise.flatten())
    assert torch.equal(denoiser(x, sigma), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "Precond"}, "class_name is 'Precond'; allowed: VPPrecond"),
        ({"model_type": "UNet"}, "model_type is 'UNet'; allowed: SongUNet, DhariwalUNet"),
        ({"img_resolution": 0}, "img_resolution is 0; allowed: an integer from 1"),
        ({"sigma_data": "1"}, "sigma_data is '1'; allowed: a number above 0 and finite"),
        ({"model_chanels": 8}, "model_chanels is not a keyword of EDMPrecond or DhariwalUNet"),
    ],
)
def test_config_errors(change, message):
    config = {"class_name": "EDMPrecond", "img_resolution": 16, "img_channels": 1}
    with pytest.raises(ValueError, match=message):
        Denoiser.from_config(config | change)


def small(in_channels=3, out_channels=3, label_dim=0):
    return SongUNet(8, in_channels, out_channels, label_dim, model_channels=32, channel_mult=[1], num_blocks=1)


@pytest.mark.parametrize(
    ("model", "preconditioning", "options", "message"),
    [
        (abs, EDM(), {}, "model is <built-in function abs>; allowed: a torch.nn.Module"),
        (small(), "EDM", {}, "preconditioning is 'EDM'; allowed: one of engine.preconditioning, such as EDM()"),
        (
            small(),
            EDM,
            {},
            "preconditioning is <class 'engine.preconditioning.EDM'>; allowed: one of engine.preconditioning, such as "
            "EDM()",
        ),
        *[
            (
                torch.nn.Identity(),
                EDM(),
                {"img_shape": s},
                f"img_shape is {s!r}; allowed: (C, *spatial), integers from 1",
            )
            for s in (32, "388", (), (3.5, 8, 8), (3, 0, 8), (True, 8, 8))
        ],
        (small(), EDM(), {"label_dim": -1}, "label_dim is -1; allowed: an integer from 0"),
        (small(), EDM(), {"label_dim": 2.5}, "label_dim is 2.5; allowed: an integer from 0"),
        (small(), EDM(), {"label_dim": 7}, "label_dim is 7; allowed: 0, the label_dim of SongUNet"),
        (small(), EDM(), {"net_channels": "8"}, "net_channels is '8'; allowed: an integer from 3"),
        (small(), EDM(), {"net_channels": 8}, "net_channels is 8; allowed: 3, the in_channels of SongUNet"),
        (
            small(in_channels=8),
            EDM(),
            {"img_shape": (3, 8, 8)},
            "net_channels is 3; allowed: 8, the in_channels of SongUNet",
        ),
        *[
            (
                small(),
                EDM(),
                {"img_shape": s},
                f"img_shape is {s}; allowed: (C, H, W), C up to 3, the out_channels of SongUNet",
            )
            for s in ((4, 8, 8), (3, 8), (3, 1, 8, 8))
        ],
    ],
)
def test_what_is_no_denoiser(model, preconditioning, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Denoiser(model, preconditioning, **options)


def test_what_is_a_denoiser():
    assert Denoiser(small(8), EDM(), img_shape=[3, np.int64(8), 8], net_channels=np.int64(8)).img_shape == (3, 8, 8)
    assert Denoiser(small(3, 6), EDM()).net_channels == 3  # further outputs, variances say, are not read
    larger = torch.zeros(2, 3, 12, 16)
    for sigma in (1.0, [1.0], torch.ones(2), torch.ones(2, 1, 1, 1)):
        assert Denoiser(small(), EDM())(larger, sigma).shape == larger.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(2, 4, 8, 8), 1.0),
            "x has shape [2, 4, 8, 8]; allowed: [B, 3, 8, 8], or another size of image that the network takes",
        ),
        (
            (torch.zeros(3, 8, 8), 1.0),
            "x has shape [3, 8, 8]; allowed: [B, 3, 8, 8], or another size of image that the network takes",
        ),
        ((torch.zeros(2, 3, 8, 8), torch.ones(3)), "sigma has shape [3]; allowed: a number, or one a sample: [2]"),
        (
            (torch.zeros(2, 3, 8, 8), torch.ones(2, 2)),
            "sigma has shape [2, 2]; allowed: a number, or one a sample: [2]",
        ),
        (
            (torch.zeros(2, 3, 8, 8), 1.0, torch.eye(4)[:2]),
            "class_labels has shape [2, 4]; allowed: [2, 5], one-hot or soft",
        ),
        (
            (torch.zeros(2, 3, 8, 8), 1.0, torch.eye(5)[:1]),
            "class_labels has shape [1, 5]; allowed: [2, 5], one-hot or soft",
        ),
        (
            (torch.zeros(2, 3, 8, 8), 1.0, torch.tensor([1, 2])),
            "class_labels has shape [2]; allowed: [2, 5], one-hot or soft",
        ),
    ],
)
def test_what_a_denoiser_is_not_called_with(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Denoiser(small(label_dim=5), EDM())(*arguments)


def test_a_network_with_the_wrong_output_shape_is_refused():
    class Wrong(torch.nn.Module):
        def forward(self, x, c_noise):
            return x[:, :, 1:]

    with pytest.raises(ValueError, match=r"the network returned shape \[1, 1, 3, 4\] for an input of shape"):
        Denoiser(Wrong(), Direct(), img_shape=(1, 4, 4))(torch.zeros(1, 1, 4, 4), 1.0)
    with pytest.raises(ValueError, match="give img_shape"):
        Denoiser(Wrong(), Direct())
