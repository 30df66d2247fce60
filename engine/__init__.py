"""Draw images from diffusion models in the EDM formulation (Karras et al. 2022), fast and to the bit.

import engine
denoiser = engine.load("fashion-mnist")
images = engine.sample(denoiser, seeds=range(64), class_labels=3)
"""

from . import adapters, backends, guidance, networks, noise, preconditioning, samplers
from .api import invert, sample, stream
from .checkpoints import load, save
from .denoiser import Denoiser
from .drawing import draw_to
from .engine import Engine
from .graphs import CaptureError
from .images import save_grid, save_png, to_uint8
from .nonfinite import NonFiniteError
from .plan import Plan
from .preview import Progress
from .samplers import Sampler
from .verify.self_check import SelfCheckError

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Denoiser",
    "Engine",
    "NonFiniteError",
    "Plan",
    "Progress",
    "Sampler",
    "SelfCheckError",
    "adapters",
    "backends",
    "draw_to",
    "guidance",
    "invert",
    "load",
    "networks",
    "noise",
    "preconditioning",
    "sample",
    "samplers",
    "save",
    "save_grid",
    "save_png",
    "stream",
    "to_uint8",
]
