"""The config of a scheduler of diffusers, read as a preconditioning: a network's noise levels and its prediction."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from ..preconditioning import EDM, Discrete, Preconditioning

_PREDICTIONS: dict[str, Literal["epsilon", "v", "sample"]] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "sample",
}
_CONSISTENCY = ("CMStochasticIterativeScheduler", "LCMScheduler", "TCDScheduler")
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")


def diffusers() -> ModuleType:
    """The package, imported now. Raises ImportError saying what to install where it is missing."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(f"this needs diffusers ({error}): pip install 'edm-engine[diffusers]'") from None


def preconditioning_of(config: Mapping[str, Any]) -> Preconditioning:
    """`EDM` for a scheduler with sigma_data, `Discrete` for one with a beta schedule (its plain betas, to the bit).

    config: a scheduler's ``.config``. What only says how that scheduler steps (clipping, thresholding, orders, which
    of the levels it visits) is not read. Raises ValueError for any other kind of model, flow matching among them.
    """
    name = config.get("_class_name", "of this class")
    prediction = config.get("prediction_type", "epsilon")
    if name in _CONSISTENCY:
        raise ValueError(f"scheduler is a {name}; allowed: those of models that denoise, not consistency models")
    if config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous":
        option = "use_flow_sigmas" if config.get("use_flow_sigmas") else "timestep_type"
        raise ValueError(f"scheduler has {option} = {config[option]!r}; allowed: discrete timesteps, or sigma_data")
    if config.get("sigma_data") is not None:
        if prediction != "epsilon":
            raise ValueError(f"prediction_type is {prediction!r} with sigma_data; allowed: 'epsilon'")
        return EDM(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0), config["sigma_data"])
    if "beta_schedule" not in config:
        raise ValueError(
            f"scheduler {name} has neither beta_schedule nor sigma_data; allowed: discrete-time and EDM schedulers "
            "(flow matching, VE and consistency models are not read)"
        )
    if prediction not in _PREDICTIONS:
        raise ValueError(f"prediction_type is {prediction!r}; allowed: {', '.join(map(repr, _PREDICTIONS))}")
    scheduler = diffusers().DDPMScheduler(**{name: config[name] for name in _BETAS if name in config})
    betas = tuple(scheduler.betas.tolist())
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    return Discrete(T=len(betas), zero_snr=zero_snr, prediction=_PREDICTIONS[prediction], betas=betas)


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """A scheduler's config with its class name; a config is one already. Raises ValueError for what is neither."""
    if isinstance(scheduler, Mapping):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"scheduler is a {type(scheduler).__name__}; allowed: a scheduler of diffusers, or its config")
    return {**config, "_class_name": type(scheduler).__name__}
