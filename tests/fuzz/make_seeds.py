"""Writes the small checkpoints the fuzzers start from: ``python -m tests.fuzz.make_seeds``."""

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

import engine
from tests.edm_layout import EasyDict, Record, dump, snapshot

SEEDS = Path(__file__).parent / "seeds"
NETWORK = {"model_type": "SongUNet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
CONFIG = {"class_name": "EDMPrecond", "img_resolution": 4, "img_channels": 1, "label_dim": 0} | NETWORK


def saved(value: object, legacy: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, _use_new_zipfile_serialization=not legacy)
    return data.getvalue()


def small_record() -> dict:
    """A network of one layer: enough for every kind of value, too little to be built."""
    layer = {"_parameters": OrderedDict(weight=nn.Parameter(torch.ones(2, 3))), "_buffers": {"f": torch.ones(3).half()}}
    layer |= {
        "_modules": {},
        "_non_persistent_buffers_set": {"f"},
        "scale": np.float64(0.5),
        "where": torch.device("cpu"),
    }
    top = {"_parameters": {}, "_buffers": {}, "_modules": nn.ModuleDict({"a": nn.Identity()})._modules.copy()}
    top["_modules"]["a"] = Record("Linear", layer)
    top |= {"_init_args": (4, 1), "_init_kwargs": EasyDict(NETWORK, sigma_max=float("inf"))}
    return {"ema": Record("EDMPrecond", top), "dataset_kwargs": EasyDict(path="data.zip", resolution=4)}


class Calls:
    """Pickles as a call of a function, or of what another call returns."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self) -> None:
        """Pickle asks for something callable."""


def adm_names() -> dict[str, torch.Tensor]:
    shapes = {"time_embed.0.weight": (8, 2), "input_blocks.0.0.weight": (2, 3, 3, 3), "out.2.weight": (6, 2, 3, 3)}
    shapes |= {"input_blocks.1.0.emb_layers.1.weight": (4, 8), "label_emb.weight": (3, 8)}
    shapes |= {"output_blocks.0.0.out_layers.0.weight": (2,), "output_blocks.1.0.out_layers.0.weight": (2,)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def score_sde_names() -> dict[str, object]:
    block = {"GroupNorm_0.weight": (4,), "Conv_0.weight": (4, 4, 1, 1), "GroupNorm_1.weight": (4,)}
    shapes = {"all_modules.0.W": (4,), "all_modules.1.weight": (16, 8), "all_modules.2.weight": (16, 16)}
    shapes |= {"all_modules.3.weight": (4, 3, 1, 1)}
    shapes |= {f"all_modules.{4 + i}.{name}": shape for i in range(3) for name, shape in block.items()}
    model = {name: torch.zeros(shape) for name, shape in shapes.items()}
    shadow = [value for name, value in model.items() if name != "all_modules.0.W"]
    return {"model": model, "ema": {"decay": 0.9, "num_updates": 1, "shadow_params": shadow}, "step": 1}


def main() -> None:
    torch.manual_seed(0)
    tiny = engine.Denoiser.from_config(CONFIG)
    tiny.save(SEEDS / "native.safetensors")
    files = {
        "edm-whole.pkl": dump(snapshot(tiny)),
        "edm-2.pkl": dump(small_record(), protocol=2),
        "edm-4.pkl": dump(small_record(), protocol=4, storage_format="cuda"),
        "edm-5-zip.pkl": dump(small_record(), protocol=5, storage_format="zip"),
        "adm.pt": saved(adm_names()),
        "adm-legacy.pt": saved(adm_names(), legacy=True),
        "score-sde.pth": saved(score_sde_names()),
        "score-sde-legacy.pth": saved(score_sde_names(), legacy=True),
        "hostile-system.pkl": pickle.dumps({"ema": Calls(os.system, "touch executed")}),
        "hostile-eval.pkl": pickle.dumps(Calls(eval, "__import__('os').abort()"), protocol=2),
        "hostile-getattr.pkl": pickle.dumps(Calls(Calls(getattr, Calls(__import__, "os"), "abort"))),
        "hostile-inside.pkl": dump({"ema": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.abort)))}),
    }
    for name, data in files.items():
        (SEEDS / name).write_bytes(data)


if __name__ == "__main__":
    main()
