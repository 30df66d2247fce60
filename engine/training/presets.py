"""The training runs behind the network that ships and the figures, so that one command repeats each."""

import inspect
from dataclasses import replace
from typing import Any

import torch

from ..denoiser import PRECONDITIONINGS
from ..preconditioning import Discrete
from ..prepare import find_device
from .augment import AUGMENT_DIM, Augment
from .loss import DiscreteLoss, EDMLoss, IDDPMLoss, Loss, VELoss, VPLoss
from .trainer import TrainConfig

# Most channels at 8x8 and 4x4: on a CPU a 32x32 level costs sixteen times an 8x8 level of the same width.
FASHION_MNIST = TrainConfig(
    network={
        "class_name": "EDMPrecond",
        "img_resolution": 32,
        "img_channels": 1,
        "label_dim": 10,
        "model_type": "SongUNet",
        "model_channels": 32,
        "channel_mult": [1, 1, 2, 4],
        "num_blocks": 1,
        "attn_resolutions": [8],
        "dropout": 0.0,
        "augment_dim": AUGMENT_DIM,
    },
    augment=Augment(p=0.04, flip_p=0.04),
)

# What --quick changes: 16 channels at 32x32, which is where the time goes, and no image spent on augmentation.
QUICK: dict[str, Any] = {
    "network": {"model_channels": 16, "channel_mult": [1, 2, 4, 8], "attn_resolutions": []},
    "images": 36_000,
    "warmup_images": 500,
    "ema_halflife_images": 1_500,
    "augment": Augment(p=0, flip_p=0),
}

# The columns of Table 1, and discrete time: the loss, and what a network's config says of its preconditioning.
LOSSES: dict[str, tuple[Loss, dict[str, Any]]] = {
    "edm": (EDMLoss(), {"class_name": "EDMPrecond"}),
    "vp": (VPLoss(), {"class_name": "VPPrecond"}),
    "ve": (VELoss(), {"class_name": "VEPrecond"}),
    "iddpm": (IDDPMLoss(), {"class_name": "iDDPMPrecond", "learn_sigma": False}),
    "discrete": (DiscreteLoss(), {"class_name": "DiscretePrecond", "prediction": "v", "zero_snr": True}),
}


def with_loss(config: TrainConfig, name: str) -> TrainConfig:
    """The same training with another loss of `LOSSES` and the preconditioning that it goes with."""
    loss, says = LOSSES[name]
    kind, _ = PRECONDITIONINGS[config.network["class_name"]]
    of_another = {"class_name", "learn_sigma", *inspect.signature(kind).parameters}
    network = {key: value for key, value in config.network.items() if key not in of_another}
    return replace(config, network=says | network, loss=loss)


def _discrete(zero_snr: bool) -> TrainConfig:
    """v-prediction by betas that leave 0.28 of the image at t = T, and by the same betas rescaled to leave nothing.

    Those of Stable Diffusion leave 0.07. In 32x32 pixels that shifts the brightness of a class by 0.01 to 0.03, which
    takes more than a few minutes of training to tell from errors of the network; 0.28 shifts it by up to 0.16 (found
    for Gaussians of the classes' means and covariances). One label in ten is dropped, so that the network can guide
    itself (Ho and Salimans 2022).
    """
    plain = with_loss(FASHION_MNIST, "discrete")
    network = plain.network | {"schedule": "linear", "scale": 0.25, "zero_snr": zero_snr, "label_dropout": 0.1}
    return replace(plain, network=network, loss=DiscreteLoss(Discrete("linear", 1000, 0.25, zero_snr, "v")))


PRESETS = {"fashion-mnist": FASHION_MNIST, "zero-snr": _discrete(True), "usual-snr": _discrete(False)}


def chosen(preset: str, *, loss: str | None = None, quick: bool = False, **given: Any) -> TrainConfig:
    """A preset, with another loss or the changes of `QUICK` if asked for, and the fields given that are not None."""
    config = PRESETS[preset] if loss is None else with_loss(PRESETS[preset], loss)
    changes = dict(QUICK) if quick else {}
    changes["network"] = config.network | changes.get("network", {})
    return replace(config, **changes | {name: value for name, value in given.items() if value is not None})


def half_dtype(device: str) -> str:
    """bfloat16 where the processor computes in it, float32 otherwise."""
    native = find_device(device).type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"
