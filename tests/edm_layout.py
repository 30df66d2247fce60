"""Writes pickles in the layout of the published EDM networks: every module a record of source, class name and state."""

import io
import pickle
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from engine import Denoiser

SOURCE = "import os\nos.abort()  # never executed\n" + "# the module's source, as the published pickles hold it\n" * 50


class EasyDict(dict):
    pass


def _reconstruct_persistent_obj(meta):
    raise AssertionError("only its name is written")


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Record:
    """What `torch_utils.persistence` makes of an object when it is pickled."""

    def __init__(self, class_name: str, state: dict) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,), None


class _Pickler(pickle._Pickler):
    """``storage_format``: how torch stored a tensor's bytes inside a pickle: "legacy", "zip" or "cuda"."""

    def __init__(self, file, protocol: int, storage_format: str) -> None:
        super().__init__(file, protocol)
        self.storage_format = storage_format

    def reducer_override(self, value):
        if not isinstance(value, torch.storage.TypedStorage):
            return NotImplemented
        data = io.BytesIO()
        torch.save(value, data, _use_new_zipfile_serialization=self.storage_format == "zip")
        written = data.getvalue()
        if self.storage_format == "cuda":  # as it is written from a GPU, by torch before 1.11
            written = written.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
            written = written.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            assert b"cuda:0" in written
        return torch.storage._load_from_bytes, (written,)


def dump(value: object, protocol: int = 4, storage_format: str = "legacy") -> bytes:
    """The pickle of anything, with the names of the EDM code where they are used."""
    data = io.BytesIO()
    with _modules():
        _Pickler(data, protocol, storage_format).dump(value)
    return data.getvalue()


@contextmanager
def _modules():
    """The EDM code's modules, for pickle to find its names in."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    made = {"torch_utils.persistence": persistence, "dnnlib.util": util}
    made |= {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def snapshot(denoiser: Denoiser, positional: int = 0) -> dict:
    """What the training loop pickles; the first ``positional`` arguments of the network given by position."""
    state = module_state(denoiser)
    config = dict(denoiser.config)
    class_name = config.pop("class_name")
    state["_init_args"] = tuple(config.pop(name) for name in list(config)[:positional])
    state["_init_kwargs"] = EasyDict(config, use_fp16=True)
    if class_name == "iDDPMPrecond":
        state["_buffers"]["u"] = denoiser.preconditioning.levels()
    loss = Record("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}})
    dataset = {"class_name": "training.dataset.ImageFolderDataset", "resolution": 8, "max_size": None}
    return {
        "ema": Record(class_name, state),
        "loss_fn": loss,
        "augment_pipe": Record("AugmentPipe", {"p": np.float64(0.12), "xflip": 1e8}),
        "dataset_kwargs": EasyDict(dataset),
    }


def module_state(module: nn.Module) -> dict:
    """The __dict__ of a module as torch has it, children as records or, in a ModuleDict, as the published files."""
    state = {name: getattr(module, name, None) for name in ("in_channels", "out_channels", "num_heads")}
    return state | {
        "training": False,
        "skip_scale": np.sqrt(0.5),
        "device": torch.device("cuda", 0),
        "dtype": torch.float16,
        "shape": torch.Size([1, 2]),
        "_parameters": OrderedDict(module.named_parameters(recurse=False)),
        "_buffers": OrderedDict(module.named_buffers(recurse=False), absent=None),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_modules": OrderedDict({name: stored(child) for name, child in module.named_children()}, absent=None),
        "_init_args": (),
        "_init_kwargs": EasyDict(init_weight=np.float64(1e-5)),
    }


def stored(module: nn.Module) -> object:
    if not isinstance(module, nn.ModuleDict):
        return Record(type(module).__name__, module_state(module))
    copy = nn.ModuleDict()
    copy._modules.update({name: stored(child) for name, child in module.items()})
    return copy
