"""Small denoisers the tests share."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import Denoiser
from engine.networks import SongUNet
from engine.networks.ideal import GaussianNetwork, IdealNetwork
from engine.preconditioning import EDM, Direct, Preconditioning


class Wavy(nn.Module):
    """A cheap elementwise network with an opinion on everything: x, c_noise, labels. One parameter sets its dtype."""

    def __init__(self, label_dim: int = 0, extra_channels: int = 0) -> None:
        super().__init__()
        self.label_dim, self.extra_channels = label_dim, extra_channels
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        shift = torch.tanh(c_noise / 50)
        if class_labels is not None:
            shift = shift + class_labels @ torch.arange(class_labels.shape[1], dtype=torch.float32)
        out = x / (1 + x.abs()) * self.gain + shift.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return torch.cat([out, out[:, : self.extra_channels]], dim=1) if self.extra_channels else out


def wavy(preconditioning: Preconditioning, shape=(3, 8, 6), label_dim=0, extra_channels=0) -> Denoiser:
    return Denoiser(Wavy(label_dim, extra_channels), preconditioning, img_shape=shape).eval()


def gaussian(shape=(1, 4, 4), std=0.5, dtype=torch.float64) -> Denoiser:
    mean = torch.linspace(-1, 1, 16, dtype=dtype).reshape(shape)
    return Denoiser(GaussianNetwork(mean, std), Direct(), img_shape=shape)


def ideal(data: Tensor) -> Denoiser:
    return Denoiser(IdealNetwork(data), Direct(), img_shape=tuple(data.shape[1:]))


def small_unet(label_dim: int = 0, seed: int = 0) -> Denoiser:
    """A DDPM++ of one channel and 16 x 16 pixels with weights that do something."""
    torch.manual_seed(seed)
    network = SongUNet(16, 1, 1, label_dim, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
    for p in network.parameters():
        nn.init.normal_(p, std=0.05)
    return Denoiser(network, EDM()).eval()


def choose_isa(monkeypatch: Any, isa: str) -> None:
    """The extension's calls for networks, which leave it open, use this instruction set."""
    from engine import _native

    monkeypatch.setattr(_native, "run_cpu", partial(_native.run_cpu, isa=isa))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tensors_alive() -> int:
    """Tensors that anything refers to. By type: to ask some objects for their class warns of what is deprecated."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())
