"""Inputs that any denoiser's network takes, for checks that need no data."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Denoiser
from .prepare import device_of


def some_labels(denoiser: Denoiser, count: int) -> Tensor | None:
    """The classes in turn, one-hot; embeddings of unit variance where labels are these; None without either."""
    dim = denoiser.label_dim
    if not dim:
        return None
    if denoiser.labels_are_classes:
        return F.one_hot(torch.arange(count) % dim, dim).to(torch.float32)
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


def network_inputs(denoiser: Denoiser, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `Denoiser.call_network` takes for noise of levels sigma [B]: x of unit variance, c_noise and labels, on the
    denoiser's device, x in its dtype and in channels_last."""
    channels, *spatial = denoiser.img_shape
    x = torch.zeros(len(sigma), denoiser.net_channels, *spatial)
    x[:, :channels] = torch.randn(len(sigma), channels, *spatial, generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    c_noise = denoiser.preconditioning.coefficients(sigma)[3].to(torch.float32)
    labels, device = some_labels(denoiser, len(sigma)), device_of(denoiser)
    moved = x.to(device, denoiser.dtype, memory_format=layout)
    return moved, c_noise.to(device), None if labels is None else labels.to(device)


def sigmas_of(denoiser: Denoiser, count: int) -> Tensor:
    """Noise levels between the denoiser's ends, or where these are 0 and infinity between 0.002 and 80."""
    return torch.linspace(max(denoiser.sigma_min, 0.002), min(denoiser.sigma_max, 80.0), count)
