"""Training: the losses of Table 1, non-leaking augmentation, data and the trainer behind ``edm-engine train``."""

from .augment import AUGMENT_DIM, Augment, Transforms
from .data import fashion_mnist
from .loss import DiscreteLoss, EDMLoss, IDDPMLoss, Loss, VELoss, VPLoss, loss_for
from .trainer import Log, TrainConfig, Trainer

__all__ = [
    "AUGMENT_DIM",
    "Augment",
    "DiscreteLoss",
    "EDMLoss",
    "IDDPMLoss",
    "Log",
    "Loss",
    "TrainConfig",
    "Trainer",
    "Transforms",
    "VELoss",
    "VPLoss",
    "fashion_mnist",
    "loss_for",
]
