"""The training run behind the network that ships, so that one command repeats it."""

from .augment import AUGMENT_DIM, Augment
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

PRESETS = {"fashion-mnist": FASHION_MNIST}
