"""DDPM++ and NCSN++: the checkpoints of score_sde_pytorch (Song et al. 2021), modules numbered ``all_modules.N``.

Such a file holds {"optimizer", "model", "ema", "step"}; the weights to sample with are the EMA's, a plain list in the
order of the model's parameters. NCSN++ works on images in [0, 1] with sigma up to 50: with images in [-1, 1] that is
VEPrecond as published, sigma up to 100.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch

from .storage import StoredTensor
from .translation import Original, Tensors, Translation, merge, state_dict_of

_RES = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1"} | {
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
_Module = dict[str, StoredTensor]


def find(saved: object) -> Original | None:
    """The network of a checkpoint, if its names are score_sde_pytorch's."""
    model = state_dict_of(saved.get("model")) if isinstance(saved, dict) else None
    if model is None or not any(key.startswith("all_modules.") for key in model):
        return None
    assert isinstance(saved, dict)  # or there were no model
    return _ScoreSDE(_numbered(model | _averages(model, saved.get("ema"))))


def _averages(model: Mapping[str, StoredTensor], ema: object) -> dict[str, StoredTensor]:
    """The EMA's tensors by name; buffers and the fixed Fourier features are not among them."""
    trained = [key for key in model if re.fullmatch(r"all_modules\.\d+\.\w+(\.\w+)?", key) and not _is_fixed(key)]
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(averages, list) or len(averages) != len(trained):
        raise ValueError(f"it has no list ema.shadow_params of {len(trained)} tensors, one a parameter")
    for key, average in zip(trained, averages, strict=True):
        if not isinstance(average, StoredTensor) or average.size != model[key].size:
            raise ValueError(f"its EMA of {key} is not of that parameter's shape {model[key].size}")
    return dict(zip(trained, averages, strict=True))


def _is_fixed(key: str) -> bool:
    return key == "all_modules.0.W"


def _numbered(state: Mapping[str, StoredTensor]) -> dict[int, _Module]:
    modules: dict[int, _Module] = {}
    for key, tensor in state.items():
        if key != "sigmas":  # a table of the discrete models, not of the network
            found = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", key)
            if found is None:
                raise ValueError(f"its tensor {key!r} has no place in DDPM++ or NCSN++")
            modules.setdefault(int(found[1]), {})[found[2]] = tensor
    return modules


def _kind(module: _Module) -> str:
    """What a module is, by the names and dimensions of its tensors; "nothing" for a resampling without any."""
    for name, kind in {"NIN_3.W": "attention", "Conv.weight": "combine", "Conv2d_0.weight": "pyramid"}.items():
        if name in module:
            return kind
    if "Conv_0.weight" in module and "GroupNorm_1.weight" in module:
        return "block"
    if "weight" in module:
        return {1: "norm", 2: "linear", 4: "conv"}.get(len(module["weight"].size), "unknown")
    return "fourier" if "W" in module else "unknown" if module else "nothing"


class _ScoreSDE(Original):
    asked: ClassVar[Mapping[str, str]] = {
        "img_resolution": "pixels",
        "class_name": "'VEPrecond' for Fourier features, 'VPPrecond' for the VP models, sub-VP is not ours",
        "resample_filter": "[1, 3, 3, 1] if it was trained with fir=True, else [1, 1]",
    }

    def __init__(self, modules: dict[int, _Module]) -> None:
        self.modules = modules
        self.kinds = {index: _kind(module) for index, module in modules.items()}

    def translate(self, given: dict[str, Any]) -> Translation:
        inferred = self._infer()
        fourier = inferred["embedding_type"] == "fourier"
        if given["class_name"] != ("VEPrecond" if fourier else "VPPrecond"):
            name = inferred["embedding_type"]
            raise ValueError(f"class_name is {given['class_name']!r}, which does not go with {name} embeddings here")
        walk = _Walk(self.modules, inferred, given["img_resolution"])
        state: Tensors = {}
        for ours, module in walk.layers():
            state |= _renamed(f"model.{ours}", module)
        config = merge(inferred | {"attn_resolutions": sorted(walk.attends, reverse=True)}, given)
        return Translation(config, state, taps=config["resample_filter"])

    def _infer(self) -> dict[str, Any]:
        kinds = list(self.kinds.values())
        first = min((index for index, kind in self.kinds.items() if kind == "conv"), default=None)
        blocks = [self.modules[index] for index, kind in sorted(self.kinds.items()) if kind == "block"]
        if first is None or not blocks:
            raise ValueError("it has no convolution and no residual blocks")
        levels = 1 + sum(map(_resamples, blocks)) // 2
        num_blocks = (len(blocks) - 3 * levels) // (2 * levels)
        if num_blocks < 1:
            raise ValueError(f"it has {len(blocks)} residual blocks of BigGAN's type for {levels} levels; not ours")
        width, channels = self.modules[first]["weight"].size[:2]
        # The encoder's blocks come first, with one more, which downsamples, from level to level.
        ends = [blocks[level * (num_blocks + 1) + num_blocks - 1]["Conv_0.weight"].size[0] for level in range(levels)]
        if not width or any(end % width for end in ends):
            raise ValueError(f"its levels have {ends} channels; allowed: multiples of {width}")
        fourier = "fourier" in kinds
        return {
            "img_channels": channels,
            "label_dim": 0,
            "model_type": "SongUNet",
            "model_channels": width,
            "channel_mult": [end // width for end in ends],
            "num_blocks": num_blocks,
            "embedding_type": "fourier" if fourier else "positional",
            "channel_mult_noise": 2 if fourier else 1,
            "encoder_type": "residual" if "pyramid" in kinds else "skip" if "combine" in kinds else "standard",
            "decoder_type": "skip" if kinds.count("norm") > 1 else "standard",
        }


def _resamples(block: _Module) -> bool:
    """Blocks that go from one level to the next keep their channels and convolve their skip connection all the same."""
    out, into = block["Conv_0.weight"].size[:2]
    return "Conv_2.weight" in block and out == into


class _Walk:
    """Goes through the numbered modules in the order the original builds them in."""

    def __init__(self, modules: Mapping[int, _Module], config: Mapping[str, Any], resolution: int) -> None:
        self.modules, self.config, self.resolution = modules, config, resolution
        self.position = 0
        self.attends: set[int] = set()

    def layers(self) -> Iterator[tuple[str, _Module]]:
        """Our layer's name and their tensors, which end when their modules do."""
        if self.config["embedding_type"] == "fourier":
            yield "map_noise", self._take("fourier")
        yield "map_layer0", self._take("linear")
        yield "map_layer1", self._take("linear")
        yield f"{self._at('enc', 0)}_conv", self._take("conv")
        yield from self._encoder()
        yield from self._decoder()
        if self.position <= max(self.modules):
            raise ValueError(f"its all_modules.{self.position} has no place in DDPM++ or NCSN++")

    def _encoder(self) -> Iterator[tuple[str, _Module]]:
        levels, kind = len(self.config["channel_mult"]), self.config["encoder_type"]
        for level in range(levels):
            for index in range(self.config["num_blocks"]):
                name = f"{self._at('enc', level)}_block{index}"
                yield name, self._take("block")
                if self._next() == "attention":
                    self.attends.add(self.resolution >> level)
                    yield name, self._take("attention")
            if level < levels - 1:
                below = self._at("enc", level + 1)
                yield f"{below}_down", self._take("block")
                if kind == "skip":
                    self._take("nothing")
                    yield f"{below}_aux_skip", self._take("combine")
                if kind == "residual":
                    yield f"{below}_aux_residual", self._take("pyramid")

    def _decoder(self) -> Iterator[tuple[str, _Module]]:
        lowest, skip = len(self.config["channel_mult"]) - 1, self.config["decoder_type"] == "skip"
        yield f"{self._at('dec', lowest)}_in0", self._take("block")
        yield f"{self._at('dec', lowest)}_in0", self._take("attention")
        yield f"{self._at('dec', lowest)}_in1", self._take("block")
        for level in range(lowest, -1, -1):
            here, last = self._at("dec", level), self.config["num_blocks"]
            for index in range(last + 1):
                yield f"{here}_block{index}", self._take("block")
            if self.resolution >> level in self.attends:
                yield f"{here}_block{last}", self._take("attention")
            if skip and level < lowest:
                self._take("nothing")
            if skip or level == 0:
                yield f"{here}_aux_norm", self._take("norm")
                yield f"{here}_aux_conv", self._take("conv")
            if level:
                yield f"{self._at('dec', level - 1)}_up", self._take("block")

    def _at(self, half: str, level: int) -> str:
        size = self.resolution >> level
        return f"{half}.{size}x{size}"

    def _next(self) -> str:
        return _kind(self.modules.get(self.position, {}))

    def _take(self, kind: str) -> _Module:
        if self._next() != kind:
            raise ValueError(
                f"its all_modules.{self.position} is {self._next()} where {kind} belongs; not DDPM++ or NCSN++ as ours"
            )
        self.position += 1
        return self.modules.get(self.position - 1, {})


def _renamed(ours: str, module: _Module) -> Tensors:
    kind = _kind(module)
    if kind == "attention":
        return _attention(ours, module)
    if kind == "fourier":
        return {f"{ours}.freqs": module["W"]}
    inner = {"block": _RES, "combine": {"Conv": ""}, "pyramid": {"Conv2d_0": ""}}.get(kind, {"": ""})
    renamed: Tensors = {}
    for name, tensor in module.items():
        layer, _, which = name.rpartition(".")
        if layer not in inner:
            raise ValueError(f"its layer {layer!r} in {ours} has no place in DDPM++ or NCSN++")
        renamed[".".join(filter(None, [ours, inner[layer], which]))] = tensor
    return renamed


def _attention(ours: str, module: _Module) -> Tensors:
    """NIN layers hold the transposed matrix of a 1x1 convolution; our qkv's channels are [channel, (q, k, v)]."""
    needed = {f"NIN_{i}.{kind}" for i in range(4) for kind in "Wb"} | {"GroupNorm_0.weight", "GroupNorm_0.bias"}
    if module.keys() != needed or any(module[f"NIN_{i}.W"].size != module["NIN_0.W"].size for i in range(3)):
        raise ValueError(f"its attention in {ours} is not that of DDPM++ and NCSN++")
    W, b = ([module[f"NIN_{i}.{kind}"].tensor() for i in range(4)] for kind in "Wb")
    qkv = torch.stack([w.t() for w in W[:3]], dim=1).flatten(0, 1)
    return {
        f"{ours}.norm2.weight": module["GroupNorm_0.weight"],
        f"{ours}.norm2.bias": module["GroupNorm_0.bias"],
        f"{ours}.qkv.weight": qkv[..., None, None],
        f"{ours}.qkv.bias": torch.stack(b[:3], dim=1).flatten(),
        f"{ours}.proj.weight": W[3].t()[..., None, None].contiguous(),
        f"{ours}.proj.bias": b[3],
    }
