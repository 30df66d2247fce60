"""The UNets of the EDM paper: one readable definition each, with the published parameter names."""

from .dhariwal import DhariwalUNet
from .song import SongUNet

__all__ = ["DhariwalUNet", "SongUNet"]
