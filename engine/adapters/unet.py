"""A UNet of diffusers as the network of a `Denoiser`."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from .schedule import config_of, diffusers, preconditioning_of

_CLIP_TOKENS = 77  # the length every text encoder of Stable Diffusion gives
_WANTED = {  # of a UNet2DConditionModel: what only other inputs than one sequence of embeddings would serve
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None, 0),
}


def from_diffusers(
    model: Any,
    scheduler: Any = None,
    *,
    img_shape: tuple[int, ...] | None = None,
    tokens: int | None = None,
    null_labels: Tensor | None = None,
) -> Denoiser:
    """A `UNet2DModel` or `UNet2DConditionModel` of diffusers, or a pipeline's, as a denoiser in eval mode.

    model: the UNet, or a pipeline with ``unet`` and ``scheduler``; it is not changed, its weights are shared.
    scheduler: a scheduler of diffusers or its config, which says the noise levels and the prediction
    (`schedule.preconditioning_of`); None: the pipeline's.
    img_shape: (C, H, W); by default from the UNet's in_channels and sample_size. A latent model's images are latents,
    which its autoencoder decodes.

    A UNet2DModel with num_class_embeds is conditional on classes: label_dim is their number, and soft labels mix their
    embeddings. A UNet2DConditionModel is conditional on encoder_hidden_states [B, tokens, cross_attention_dim]:
    class_labels are these, flattened to [N, tokens * cross_attention_dim], one row a sample; there are no classes to
    draw or to name. tokens: 77 if None, CLIP's. null_labels: what means "no label" to that network, the embedding of
    the empty prompt, say, label_dim numbers; it replaces labels that are all zeros, which is how
    `guidance.ClassifierFree` asks for none. None leaves the zeros.

    Raises ValueError naming what is not supported: other networks, further inputs, schedulers that are not read.
    """
    if scheduler is None and hasattr(model, "unet") and hasattr(model, "scheduler"):
        model, scheduler = model.unet, model.scheduler
    package = diffusers()
    if not isinstance(model, package.UNet2DModel | package.UNet2DConditionModel):
        raise ValueError(f"model is a {type(model).__name__}; allowed: UNet2DModel, UNet2DConditionModel, a pipeline")
    if scheduler is None:
        raise ValueError("scheduler is None; allowed: the scheduler of diffusers with which the UNet was trained")
    network = DiffusersUNet(model, tokens, null_labels)
    shape = _img_shape(model.config) if img_shape is None else img_shape
    return Denoiser(network, preconditioning_of(config_of(scheduler)), img_shape=shape).eval()


class DiffusersUNet(nn.Module):
    """model(x, c_noise, class_labels) around ``unet``, a copy of the caller's that shares its tensors."""

    null_labels: Tensor | None

    def __init__(self, unet: nn.Module, tokens: int | None, null_labels: Tensor | None) -> None:
        super().__init__()
        config: Any = unet.config
        if config.time_embedding_type != "positional":
            raise ValueError(f"time_embedding_type is {config.time_embedding_type!r}; allowed: 'positional'")
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            given = f"in_channels is {config.in_channels}, out_channels {config.out_channels}"
            raise ValueError(f"{given}; allowed: equal, or twice as many out (learned variances, not read)")
        self.unet = copy.deepcopy(unet, {id(t): t for t in (*unet.parameters(), *unet.buffers())})
        self.tokens = _tokens(unet, tokens)
        self.label_dim = _label_dim(unet, self.tokens)
        embedding = getattr(self.unet, "class_embedding", None)
        if isinstance(embedding, nn.Embedding):
            self.unet.class_embedding = _SoftEmbedding(embedding.weight)
        self.register_buffer("null_labels", _null_labels(null_labels, self.tokens and self.label_dim))

    @property
    def labels_are_classes(self) -> bool:
        return self.tokens == 0

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        given: dict[str, Tensor] = {}
        if class_labels is not None:
            labels = class_labels.to(x.dtype)
            if self.null_labels is not None:
                labels = torch.where((labels == 0).all(1, keepdim=True), self.null_labels.to(x.dtype), labels)
            if self.tokens:
                given["encoder_hidden_states"] = labels.reshape(len(x), self.tokens, -1)
            else:
                given["class_labels"] = labels
        F: Tensor = self.unet(x, c_noise, return_dict=False, **given)[0]
        return F


class _SoftEmbedding(nn.Module):
    """nn.Embedding for one-hot labels [B, classes], to the bit (one product with 1, others with 0), and soft ones."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, labels: Tensor) -> Tensor:
        return labels @ self.weight


def _img_shape(config: Any) -> tuple[int, ...]:
    size = config.sample_size
    if size is None:
        raise ValueError("img_shape is None, and the UNet's config has no sample_size; allowed: (C, H, W)")
    return (config.in_channels, *((size, size) if isinstance(size, int) else size))


def _tokens(unet: nn.Module, tokens: int | None) -> int:
    """The length of encoder_hidden_states, 0 for a network without."""
    if not isinstance(unet, diffusers().UNet2DConditionModel):
        if tokens is not None:
            raise ValueError(f"tokens is {tokens!r}; allowed: None, unless the model is a UNet2DConditionModel")
        return 0
    for name, wanted in _WANTED.items():
        if unet.config[name] not in wanted:
            raise ValueError(f"{name} is {unet.config[name]!r}; allowed in a UNet2DConditionModel: {wanted[0]}")
    if not isinstance(unet.config.cross_attention_dim, int):
        raise ValueError(f"cross_attention_dim is {unet.config.cross_attention_dim!r}; allowed: one integer")
    tokens = _CLIP_TOKENS if tokens is None else tokens
    if not (isinstance(tokens, int) and tokens >= 1):
        raise ValueError(f"tokens is {tokens!r}; allowed: an integer from 1")
    return tokens


def _label_dim(unet: nn.Module, tokens: int) -> int:
    config: Any = unet.config
    if tokens:
        return tokens * int(config.cross_attention_dim)
    if config.class_embed_type is not None:
        raise ValueError(f"class_embed_type is {config.class_embed_type!r}; allowed: None, with num_class_embeds")
    return config.num_class_embeds or 0


def _null_labels(given: Tensor | None, dim: int) -> Tensor | None:
    """As a row [1, dim]; dim is 0 for a network without embeddings."""
    if given is None:
        return None
    if not dim:
        raise ValueError("null_labels are given; allowed: None, unless the model is a UNet2DConditionModel")
    if not (isinstance(given, Tensor) and given.is_floating_point() and given.numel() == dim):
        what = list(given.shape) if isinstance(given, Tensor) else given
        raise ValueError(f"null_labels is {what}; allowed: a float tensor of {dim} numbers")
    return given.detach().reshape(1, dim).to(torch.float32)
