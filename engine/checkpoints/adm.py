"""ADM: the checkpoints of guided-diffusion (Dhariwal and Nichol 2021), state dicts of ``input_blocks.N.M...`` names."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .storage import StoredTensor
from .translation import Original, Tensors, Translation, merge, state_dict_of

_RES = {"in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1"} | {
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
_ATTENTION = {"norm": "norm2", "proj_out": "proj"}
_OUTER = {"time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "out.0": "out_norm", "out.2": "out_conv"}
_HEAD = 64  # channels of a head in our DhariwalUNet, as in the published 64x64, 256x256 and LSUN networks


def find(saved: object) -> Original | None:
    """The network of a state dict, if its names are guided-diffusion's."""
    state = state_dict_of(saved)
    named = state is not None and {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= state.keys()
    return _ADM(state) if state is not None and named else None


class _ADM(Original):
    asked: ClassVar[Mapping[str, str]] = {
        "img_resolution": "pixels",
        "class_name": "'iDDPMPrecond' for the cosine schedule, 'DiscretePrecond' with schedule 'linear' for the linear",
        "num_head_channels": f"{_HEAD}",
    }

    def __init__(self, state: dict[str, StoredTensor]) -> None:
        self.state = state

    def translate(self, given: dict[str, Any]) -> Translation:
        if given.pop("num_head_channels") != _HEAD:
            raise ValueError(f"num_head_channels is not {_HEAD}; attention heads of other sizes are not ours")
        split_first = given.pop("use_new_attention_order", False)
        config = merge(self._infer(given["img_resolution"]), given)
        return Translation(config, self._rename(config, split_first), taps=(1, 1))

    def _infer(self, resolution: int) -> dict[str, Any]:
        state = self.state
        model_channels = self._size("time_embed.0.weight")[1]
        in_channels, out_channels = self._size("input_blocks.0.0.weight")[1], self._size("out.2.weight")[0]
        if out_channels not in (in_channels, 2 * in_channels) or in_channels > 4:
            raise ValueError(f"it turns {in_channels} channels into {out_channels}; upsamplers are not ours")
        ups = {
            int(found[1]) for key in state if (found := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.w", key))
        }
        count = 1 + max((int(key.split(".")[1]) for key in state if re.match(r"output_blocks\.\d+\.", key)), default=-1)
        levels = len(ups) + 1
        per_level = count // levels
        if count != per_level * levels or per_level < 2 or self._size("input_blocks.1.0.emb_layers.1.weight")[0] % 2:
            raise ValueError("its blocks are not ADM's: it needs resblock_updown=True and use_scale_shift_norm=True")
        widths = [self._size(f"output_blocks.{i * per_level}.0.out_layers.0.weight")[0] for i in range(levels)][::-1]
        if any(width % model_channels for width in widths) or min(widths) < 128:
            raise ValueError(f"its levels have {widths} channels; allowed: multiples of {model_channels}, from 128")
        attention = [f"output_blocks.{i * per_level}.1.qkv.weight" in state for i in range(levels)][::-1]
        return {
            "img_channels": in_channels,
            "learn_sigma": out_channels != in_channels,
            "label_dim": self._size("label_emb.weight")[0] if "label_emb.weight" in state else 0,
            "model_type": "DhariwalUNet",
            "model_channels": model_channels,
            "channel_mult": [width // model_channels for width in widths],
            "num_blocks": per_level - 1,
            "attn_resolutions": [resolution >> level for level, has in enumerate(attention) if has],
        }

    def _size(self, name: str) -> tuple[int, ...]:
        if name not in self.state or not self.state[name].nbytes:
            raise ValueError(f"tensor {name} is missing or empty")
        return self.state[name].size

    def _rename(self, config: Mapping[str, Any], split_first: bool) -> Tensors:
        renamed: Tensors = {}
        left = dict(self.state)
        for theirs, ours in _layers(config).items():
            for kind in ("weight", "bias"):
                if f"{theirs}.{kind}" in left:
                    renamed[f"model.{ours}.{kind}"] = left.pop(f"{theirs}.{kind}")
        for theirs, ours in _attentions(config).items():
            for kind in ("weight", "bias"):
                if f"{theirs}.qkv.{kind}" in left:
                    qkv = left.pop(f"{theirs}.qkv.{kind}").tensor()
                    renamed[f"model.{ours}.qkv.{kind}"] = _reorder(qkv, split_first)
                proj = renamed.get(f"model.{ours}.proj.{kind}")
                if kind == "weight" and isinstance(proj, StoredTensor):
                    renamed[f"model.{ours}.proj.{kind}"] = proj.tensor()[..., None]
        if "label_emb.weight" in left:
            renamed["model.map_label.weight"] = left.pop("label_emb.weight").tensor().t().contiguous()
        if left:
            raise ValueError(f"its tensor {min(left)} has no place in ADM as the other tensors describe it")
        return renamed


def _reorder(qkv: torch.Tensor, split_first: bool) -> torch.Tensor:
    """Output channels [head, (q, k, v), channel], or [(q, k, v), head, channel], to our [head, channel, (q, k, v)]."""
    rest = qkv.shape[1:]
    if qkv.shape[0] % (3 * _HEAD):
        raise ValueError(f"an attention layer has {qkv.shape[0]} channels; allowed: multiples of {3 * _HEAD}")
    if split_first:
        ordered = qkv.reshape(3, -1, _HEAD, *rest).movedim(0, 2)
    else:
        ordered = qkv.reshape(-1, 3, _HEAD, *rest).movedim(1, 2)
    flat = ordered.reshape(qkv.shape)
    return flat[..., None] if qkv.dim() == 3 else flat  # one-dimensional convolutions there, two here


def _blocks(config: Mapping[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Our block -> the path of their ResBlock, and of the attention in it if it has one."""
    resolution, blocks, levels = config["img_resolution"], config["num_blocks"], len(config["channel_mult"])
    found: dict[str, tuple[str, str | None]] = {}
    index = 1
    for level in range(levels):
        res = resolution >> level
        attends = res in config["attn_resolutions"]
        if level:
            found[f"enc.{res}x{res}_down"] = (f"input_blocks.{index}.0", None)
            index += 1
        for block in range(blocks):
            path = f"input_blocks.{index}"
            found[f"enc.{res}x{res}_block{block}"] = (f"{path}.0", f"{path}.1" if attends else None)
            index += 1
    lowest = resolution >> (levels - 1)
    found[f"dec.{lowest}x{lowest}_in0"] = ("middle_block.0", "middle_block.1")
    found[f"dec.{lowest}x{lowest}_in1"] = ("middle_block.2", None)
    for index in range(levels * (blocks + 1)):
        level, block = levels - 1 - index // (blocks + 1), index % (blocks + 1)
        res, path = resolution >> level, f"output_blocks.{index}"
        attends = res in config["attn_resolutions"]
        found[f"dec.{res}x{res}_block{block}"] = (f"{path}.0", f"{path}.1" if attends else None)
        if level and block == blocks:
            found[f"dec.{res * 2}x{res * 2}_up"] = (f"{path}.{2 if attends else 1}", None)
    return found


def _layers(config: Mapping[str, Any]) -> dict[str, str]:
    """Their layer -> ours, except for what is state_dict_of in another order."""
    size = config["img_resolution"]
    layers = {"input_blocks.0.0": f"enc.{size}x{size}_conv", **_OUTER}
    for ours, (theirs, attention) in _blocks(config).items():
        layers |= {f"{theirs}.{old}": f"{ours}.{new}" for old, new in _RES.items()}
        if attention:
            layers |= {f"{attention}.{old}": f"{ours}.{new}" for old, new in _ATTENTION.items()}
    return layers


def _attentions(config: Mapping[str, Any]) -> dict[str, str]:
    return {attention: ours for ours, (_, attention) in _blocks(config).items() if attention}
