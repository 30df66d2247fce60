"""Folders that diffusers writes: a pipeline (``unet/``, ``scheduler/``), or a UNet with its scheduler's config."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..denoiser import Denoiser
from .schedule import diffusers
from .unet import from_diffusers

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_UNETS = ("UNet2DModel", "UNet2DConditionModel")


def recognises(path: Path) -> bool:
    """Whether it is such a folder, whatever model is in it."""
    return path.is_dir() and any((path / name).is_file() for name in ("model_index.json", "config.json"))


def load(path: Path) -> Denoiser:
    """The UNet of a folder in float32, eval mode; see `from_diffusers`.

    ``path``: a pipeline, or a UNet's own folder with scheduler_config.json inside or in ``../scheduler``. Weights are
    read from safetensors only, and nothing is downloaded. Raises ValueError naming what is missing or not supported.
    """
    folder = path / "unet" if (path / "unet").is_dir() else path
    config = _json(folder / "config.json")
    name = config.get("_class_name")
    if name not in _UNETS:
        raise ValueError(f"{folder}: _class_name is {name!r}; allowed: {', '.join(_UNETS)}")
    tokens = _tokens(path) if name == "UNet2DConditionModel" else None
    return from_diffusers(_unet(folder, name), _scheduler(folder), tokens=tokens)


def _unet(folder: Path, name: str) -> Any:
    """All weights from safetensors; diffusers draws at random what a file lacks, and only logs it."""
    if not any((folder / f"{_WEIGHTS}{ending}").is_file() for ending in ("", ".index.json")):
        raise ValueError(f"{folder} has no {_WEIGHTS}; other files of weights are not read")
    kind = getattr(diffusers(), name)
    options = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
    try:
        unet, found = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: diffusers cannot read it: {' '.join(str(error).split())}") from None
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{folder}: tensors do not fit the config, first of {len(wrong)}: {wrong[0]}")
    return unet.float()


def _tokens(path: Path) -> int | None:
    """What a pipeline's text encoder says of its length."""
    config = path / "text_encoder" / "config.json"
    return _json(config).get("max_position_embeddings") if config.is_file() else None


def _scheduler(folder: Path) -> Any:
    """The scheduler beside a UNet, made by its class, whose defaults fill what an old config lacks; or our config."""
    for place in (folder, folder.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            config = _json(place / "scheduler_config.json")
            name = config.get("_class_name")
            if name == "EngineScheduler":
                return config
            kind = getattr(diffusers(), str(name), None)
            if kind is None:
                raise ValueError(f"{place}: _class_name is {name!r}; allowed: one of diffusers, EngineScheduler")
            return kind.from_config(config)
    raise ValueError(
        f"{folder} has no scheduler_config.json, nor has ../scheduler; allowed: a UNet with its scheduler's config, or "
        "engine.adapters.from_diffusers(unet, scheduler)"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON file that can be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; allowed: an object")
    return content
