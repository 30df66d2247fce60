"""Denoiser: a network with its preconditioning, the one model contract every sampler sees."""

import inspect
import json
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import preconditioning as pre
from . import tensor_file
from .allowed import integer, is_number, require
from .networks import DhariwalUNet, SongUNet
from .networks.block import Share
from .networks.remembered import Remembered
from .preconditioning import Preconditioning, require_preconditioning

_NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
# class name in published configs -> (preconditioning, network it defaults to)
PRECONDITIONINGS: dict[str, tuple[type[Preconditioning], str]] = {
    "VPPrecond": (pre.VP, "SongUNet"),
    "VEPrecond": (pre.VE, "SongUNet"),
    "iDDPMPrecond": (pre.IDDPM, "DhariwalUNet"),
    "EDMPrecond": (pre.EDM, "DhariwalUNet"),
    "DiscretePrecond": (pre.Discrete, "SongUNet"),  # ours: no published config has discrete timesteps
}


class Denoiser(nn.Module):
    """D(x; sigma) of equation 7 around a network F.

    Parameters
    ----------
    model: any module called as ``model(x, c_noise)``, or ``model(x, c_noise, class_labels)`` when conditional:
        x [B, net_channels, *spatial] in the network's dtype, c_noise [B] float32, class_labels [B, label_dim] float32.
        It may return more channels than the image has; the first C are read. It must not write to its input, nor
        return a view of it: the engine fills the same buffer again.
    preconditioning: one of `engine.preconditioning`.
    img_shape: (C, *spatial) of one sample; by default from the model's ``in_channels`` and ``img_resolution``.
    label_dim: number of classes, 0 for an unconditional network; taken from the model's ``label_dim``. A model whose
        ``labels_are_classes`` is false is conditional on embeddings [B, label_dim]: no class is drawn or named for it.
    net_channels: channels of x as the model takes it, at least C; those beyond the image's are zeros (8 instead of 3,
        say, for convolutions that want multiples of eight). By default C.

    Raises ValueError naming what does not fit, a network of this package with other channels or labels among it.
    ``config`` is the dict it was built from by `from_config`, ``class_names`` what a checkpoint calls its classes.
    """

    remembered: Remembered | None = None  # what an engine has of its own network's evaluations on a CPU

    def __init__(
        self,
        model: nn.Module,
        preconditioning: Preconditioning,
        *,
        img_shape: tuple[int, ...] | None = None,
        label_dim: int | None = None,
        net_channels: int | None = None,
    ) -> None:
        super().__init__()
        require("model", model, isinstance(model, nn.Module), "a torch.nn.Module")
        require_preconditioning(preconditioning)
        if img_shape is None:
            if not (hasattr(model, "in_channels") and hasattr(model, "img_resolution")):
                raise ValueError(
                    f"img_shape is None and {type(model).__name__} has no in_channels and img_resolution; "
                    "give img_shape=(C, H, W)"
                )
            in_channels, resolution = (int(getattr(model, name)) for name in ("in_channels", "img_resolution"))
            img_shape = (in_channels, resolution, resolution)
        self.model = model
        self.preconditioning = preconditioning
        self.img_shape = _img_shape(img_shape)
        self.label_dim = integer("label_dim", getattr(model, "label_dim", 0) if label_dim is None else label_dim, 0)
        self.labels_are_classes = bool(getattr(model, "labels_are_classes", True))
        channels = self.img_shape[0]
        self.net_channels = integer("net_channels", channels if net_channels is None else net_channels, channels)
        if isinstance(model, SongUNet | DhariwalUNet):
            self._require_fit(model)
        self.config: dict[str, Any] | None = None
        self.class_names: tuple[str, ...] | None = None

    def _require_fit(self, network: SongUNet | DhariwalUNet) -> None:
        """A network of this package is called with what it was built for: its operations rely on that."""
        name, shape, out = type(network).__name__, self.img_shape, network.out_channels
        fits = len(shape) == 3 and shape[0] <= out
        require("img_shape", shape, fits, f"(C, H, W), C up to {out}, the out_channels of {name}")
        for mine, theirs in (("net_channels", "in_channels"), ("label_dim", "label_dim")):
            value, allowed = getattr(self, mine), getattr(network, theirs)
            require(mine, value, value == allowed, f"{allowed}, the {theirs} of {name}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Denoiser":
        """Build network and preconditioning from a plain dict in the published form.

        ``{"class_name": "EDMPrecond", "img_resolution": 32, "img_channels": 3, "label_dim": 10,
        "model_type": "SongUNet", ...}``: keywords of the preconditioning go there, the rest to the network.
        ``learn_sigma``: the network has as many output channels again, for variances that are not read; as published,
        networks of iDDPMPrecond have them and others have not.
        Raises ValueError naming an unknown class, a missing entry or an unknown keyword.
        """
        rest = dict(config)
        class_name = rest.pop("class_name", None)
        if class_name not in PRECONDITIONINGS:
            raise ValueError(f"class_name is {class_name!r}; allowed: {', '.join(PRECONDITIONINGS)}")
        kind, default_network = PRECONDITIONINGS[class_name]
        model_type = rest.pop("model_type", default_network)
        if model_type not in _NETWORKS:
            raise ValueError(f"model_type is {model_type!r}; allowed: {', '.join(_NETWORKS)}")
        for name in ("img_resolution", "img_channels"):
            if not isinstance(rest.get(name), int) or rest[name] < 1:
                raise ValueError(f"{name} is {rest.get(name)!r}; allowed: an integer from 1")
        rest.pop("use_fp16", None)  # the network's dtype is chosen when sampling, not stored in a config
        resolution, channels = rest.pop("img_resolution"), rest.pop("img_channels")
        learn_sigma = rest.pop("learn_sigma", kind is pre.IDDPM)
        pre_names = set(inspect.signature(kind).parameters)
        pre_args = {name: rest.pop(name) for name in list(rest) if name in pre_names}
        given = {"img_resolution", "in_channels", "out_channels"}
        allowed = set(inspect.signature(_NETWORKS[model_type]).parameters) - given
        for name in rest:
            if name not in allowed:
                raise ValueError(f"{name} is not a keyword of {class_name} or {model_type}; allowed: {sorted(allowed)}")
        out_channels = channels * 2 if learn_sigma else channels
        denoiser = cls(_NETWORKS[model_type](resolution, channels, out_channels, **rest), kind(**pre_args))
        denoiser.config = dict(config)
        return denoiser

    def save(
        self,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Write weights in ``dtype`` and config (plus free ``notes``) as one safetensors file, atomically.

        Raises ValueError for a denoiser that was not built by `from_config` or loaded, or that an engine has prepared.
        """
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype is {dtype!r}; allowed: a floating dtype")
        require_original(self)
        if self.config is None:
            raise ValueError("denoiser has no config; only one built by Denoiser.from_config or load can be saved")
        metadata = {**(notes or {}), "config": json.dumps(self.config)}
        if self.class_names is not None:
            metadata["classes"] = json.dumps(self.class_names)
        tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in self.state_dict().items()}
        tensor_file.write(Path(path), tensors, metadata)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return network_dtype(self.model)

    @property
    def sigma_min(self) -> float:
        """The smallest noise level the network supports."""
        return self.preconditioning.sigma_min

    @property
    def sigma_max(self) -> float:
        """The largest noise level the network supports."""
        return self.preconditioning.sigma_max

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level the network knows."""
        return self.preconditioning.round_sigma(torch.as_tensor(sigma))

    def call_network(self, net_in: Tensor, c_noise: Tensor, class_labels: Tensor | None, **extra: Tensor) -> Tensor:
        """F(net_in; c_noise) [B, >=C, *spatial] in the network's dtype; refuses an output of another shape."""
        labels = (class_labels,) if self.label_dim else ()
        network = self.model if self.remembered is None or extra else self.remembered
        F = network(net_in, c_noise, *labels, **extra)
        if not isinstance(F, Tensor):
            raise ValueError(f"the network returned a {type(F).__name__}; allowed: a tensor")
        batch, channels, *spatial = len(net_in), self.img_shape[0], *net_in.shape[2:]
        if F.dim() != net_in.dim() or F.shape[0] != batch or F.shape[1] < channels or list(F.shape[2:]) != spatial:
            raise ValueError(
                f"the network returned shape {list(F.shape)} for an input of shape {list(net_in.shape)}; "
                f"allowed: [{batch}, {channels} or more, {', '.join(map(str, spatial))}]"
            )
        return F

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        scaled: bool = False,
    ) -> Tensor:
        """D(x; sigma), float32 [B, C, *spatial] (float64 for a float64 network).

        x [B, C, *spatial]; sigma a number, [] or [B]; class_labels [B, label_dim] one-hot or soft (a conditional
        network given None gets zeros); augment_labels [B, augment_dim] for networks trained with augmentation.
        scaled: x is s x with s = 1 / sqrt(1 + sigma^2), which is finite where sigma is not.
        Spatial sizes may differ from ``img_shape`` where the network takes them. Raises ValueError for other shapes.
        """
        if x.dim() != len(self.img_shape) + 1 or x.shape[1] != self.img_shape[0]:
            other = ", or another size of image that the network takes" if len(self.img_shape) > 1 else ""
            raise ValueError(f"x has shape {list(x.shape)}; allowed: [B, {', '.join(map(str, self.img_shape))}]{other}")
        dtype = torch.promote_types(self.dtype, torch.float32)
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32)
        if sigma.numel() not in (1, len(x)):
            raise ValueError(f"sigma has shape {list(sigma.shape)}; allowed: a number, or one a sample: [{len(x)}]")
        sigma = sigma.reshape(-1).expand(len(x))
        coefficients = self.preconditioning.scaled_coefficients if scaled else self.preconditioning.coefficients
        c_skip, c_out, c_in, c_noise = coefficients(sigma)
        if class_labels is not None and not self.label_dim:
            raise ValueError("class_labels are given; allowed: None, the network is unconditional")
        if self.label_dim and class_labels is None:
            class_labels = torch.zeros([len(x), self.label_dim], device=x.device)
        if class_labels is not None and list(class_labels.shape) != [len(x), self.label_dim]:
            allowed = f"[{len(x)}, {self.label_dim}], one-hot or soft"
            raise ValueError(f"class_labels has shape {list(class_labels.shape)}; allowed: {allowed}")
        extra = {} if augment_labels is None else {"augment_labels": augment_labels}
        net_in = (per_sample(c_in, x) * x).to(self.dtype)
        if self.net_channels > x.shape[1]:
            padding = net_in.new_zeros(len(x), self.net_channels - x.shape[1], *x.shape[2:])
            net_in = torch.cat([net_in, padding], dim=1)
        F = self.call_network(net_in, c_noise, class_labels, **extra)
        return per_sample(c_skip, x) * x + per_sample(c_out, x) * F[:, : x.shape[1]].to(dtype)


def require_original(denoiser: Denoiser) -> None:
    """Raises ValueError for an engine's own denoiser, whose weights are folded and gathered."""
    if any(isinstance(module, Share) for module in denoiser.modules()):
        raise ValueError("denoiser is one that an engine has prepared; allowed: the denoiser it was made of")


def _img_shape(given: Any) -> tuple[int, ...]:
    listed = isinstance(given, tuple | list) and len(given) > 0
    ok = listed and all(is_number(size, numbers.Integral) and size >= 1 for size in given)
    require("img_shape", given, ok, "(C, *spatial), integers from 1")
    return tuple(int(size) for size in given)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], broadcastable against ``like`` and in its dtype."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def network_dtype(network: nn.Module) -> torch.dtype:
    """What a network says it computes in (``.dtype``), else the dtype of its first floating parameter or buffer."""
    declared = getattr(network, "dtype", None)
    if isinstance(declared, torch.dtype):
        return declared
    tensors = (*network.parameters(), *network.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
