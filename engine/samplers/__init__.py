"""Samplers: small frozen records of what the user chooses, each of which fills the rows of a `engine.Plan`."""

from types import MappingProxyType

from ..plan import Sampler
from .ablation import AblationSampler, ablation
from .adaptive import AdaptiveSampler, rk45
from .ancestral import ddim, ddpm, euler_maruyama, langevin, predictor_corrector
from .base import Churn
from .edm import EDMSampler, edm
from .inversion import InversionSampler
from .levels import GivenLevels, Levels
from .multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, lms, unipc
from .registry import REGISTRY, Entry
from .tables import TableSampler, linear, table

# The churn that the EDM paper found by grid search (its Table 5), for `edm` and `ablation`.
CHURN_PRESETS = MappingProxyType(
    {
        "cifar10-vp": Churn(30, 0.01, 1, 1.007),
        "cifar10-ve": Churn(80, 0.05, 1, 1.007),
        "imagenet-64": Churn(40, 0.05, 50, 1.003),
    }
)

__all__ = [
    "CHURN_PRESETS",
    "REGISTRY",
    "AblationSampler",
    "AdaptiveSampler",
    "Churn",
    "EDMSampler",
    "Entry",
    "GivenLevels",
    "InversionSampler",
    "Levels",
    "Sampler",
    "TableSampler",
    "ablation",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "edm",
    "euler_maruyama",
    "langevin",
    "linear",
    "lms",
    "predictor_corrector",
    "rk45",
    "table",
    "unipc",
]
