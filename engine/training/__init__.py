"""Training: the EDM loss, non-leaking augmentation, data and the trainer behind ``edm-engine train``."""

from .augment import AUGMENT_DIM, Augment
from .data import fashion_mnist
from .loss import EDMLoss
from .trainer import Log, TrainConfig, Trainer

__all__ = ["AUGMENT_DIM", "Augment", "EDMLoss", "Log", "TrainConfig", "Trainer", "fashion_mnist"]
