"""Layers with the published EDM parameter names: Linear, Conv2d (with resampling), GroupNorm, noise embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from .ops import TORCH, Around, Ops, Packed, Resample

InitMode = Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"]


@dataclass(frozen=True)
class Init:
    """How a layer's weight and bias are drawn: a Glorot or He distribution times a scale."""

    mode: InitMode = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
        if self.mode == "xavier_uniform":
            return np.sqrt(6 / (fan_in + fan_out)) * (torch.rand(*shape) * 2 - 1)
        if self.mode == "kaiming_uniform":
            return np.sqrt(3 / fan_in) * (torch.rand(*shape) * 2 - 1)
        if self.mode == "kaiming_normal":
            return np.sqrt(1 / fan_in) * torch.randn(*shape)
        raise ValueError(f"init mode is {self.mode!r}; allowed: xavier_uniform, kaiming_uniform, kaiming_normal")


class Linear(nn.Module):
    """y = x W^T + b for x [B, in_features]."""

    ops: Ops = TORCH

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: Init | None = None) -> None:
        super().__init__()
        init = init or Init()
        self.in_features, self.out_features = in_features, out_features
        fans = (in_features, out_features)
        self.weight = nn.Parameter(init.draw([out_features, in_features], *fans) * init.weight)
        self.bias = nn.Parameter(init.draw([out_features], *fans) * init.bias) if bias else None

    def forward(self, x: Tensor, *, add: Tensor | None = None, silu: bool = False) -> Tensor:
        """The layer of x, plus ``add``, or silu of that."""
        return self.ops.linear(x, self.weight, self.bias, add=add, silu=silu)


class Conv2d(nn.Module):
    """Same-size convolution, optionally preceded by a resampling by two; kernel=0 resamples only.

    With ``fused_resample`` and ``down`` the order is turned round (convolve, then decimate), as NCSN++ does it.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    resample_filter: Tensor | None
    ops: Ops = TORCH
    packed: Packed | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        fused_resample: bool = False,
        init: Init | None = None,
    ) -> None:
        if up and down:
            raise ValueError("up and down are both set; a Conv2d resamples one way at most")
        super().__init__()
        init = init or Init()
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, kernel
        self.up, self.down, self.fused_resample = up, down, fused_resample
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = [out_channels, in_channels, kernel, kernel]
        self.weight = nn.Parameter(init.draw(shape, *fans) * init.weight) if kernel else None
        self.bias = nn.Parameter(init.draw([out_channels], *fans) * init.bias) if kernel and bias else None
        taps = torch.as_tensor(resample_filter, dtype=torch.float32)
        outer = (taps.ger(taps) / taps.sum().square())[None, None]
        self.register_buffer("resample_filter", outer if up or down else None)
        self.taps = tuple(tap / sum(resample_filter) for tap in resample_filter)

    @property
    def resample(self) -> Resample | None:
        """The resampling that goes with the convolution, if any."""
        filter = self.resample_filter
        return None if filter is None else Resample(filter, self.taps, self.up)

    def forward(self, x: Tensor) -> Tensor:
        resample = self.resample
        if resample is None:
            return self.convolve(x)
        if self.fused_resample and self.down and self.weight is not None:
            wider = self.kernel // 2 + len(self.taps) // 2 - 1
            return self.ops.resample(self.convolve(x, padding=wider), resample, padding=0)
        return self.convolve(self.ops.resample(x, resample))

    def convolve(self, x: Tensor, add: Tensor | None = None, padding: int | None = None) -> Tensor:
        """The convolution alone, plus ``add``, which has the output's shape; x itself if there is none."""
        if self.weight is None:
            return x
        padding = self.kernel // 2 if padding is None else padding
        return self.ops.conv2d(x, self.weight, self.bias, padding, add, self.packed)

    def replace_weights(self, change: Callable[[Tensor], Tensor]) -> None:
        """Give the layer new tensors: those it was made with may be another module's."""
        for name, value in list(self.named_parameters(recurse=False)):
            setattr(self, name, nn.Parameter(change(value.detach()), requires_grad=value.requires_grad))


class GroupNorm(nn.Module):
    """Group normalisation with at most 32 groups of at least four channels."""

    ops: Ops = TORCH

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = min(32, num_channels // 4)
        if not self.num_groups or num_channels % self.num_groups:
            allowed = "numbers that make up to 32 equal groups of 4 or more"
            raise ValueError(f"a layer has {num_channels} channels; allowed: {allowed}")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        """The norm, and what `ops.group_norm` can do around it."""
        return self.both(x, **around)[0]

    def both(self, x: Tensor, **around: Unpack[Around]) -> tuple[Tensor, Tensor]:
        """Also what the block keeps of its input."""
        return self.ops.group_norm(x, self.weight, self.bias, self.num_groups, self.eps, **around)


class PositionalEmbedding(nn.Module):
    """Sinusoids of c_noise at geometrically spaced frequencies (Vaswani et al. 2017): [B] -> [B, num_channels];
    cosines first, or sines.
    """

    held: Tensor | None = None  # the frequencies, once an engine has prepared the network

    def __init__(
        self, num_channels: int, max_positions: int = 10000, endpoint: bool = False, sin_first: bool = False
    ) -> None:
        super().__init__()
        self.num_channels, self.max_positions, self.endpoint = num_channels, max_positions, endpoint
        self.sin_first = sin_first

    def frequencies(self, device: torch.device) -> Tensor:
        """float32 [num_channels / 2]."""
        half = self.num_channels // 2
        freqs = torch.arange(half, dtype=torch.float32, device=device) / (half - (1 if self.endpoint else 0))
        return (1 / self.max_positions) ** freqs

    def forward(self, x: Tensor) -> Tensor:
        freqs = self.frequencies(x.device) if self.held is None else self.held
        return _sinusoids(x.ger(freqs.to(x.dtype)), self.sin_first)


class FourierEmbedding(nn.Module):
    """Random Fourier features of c_noise (Tancik et al. 2020, as in NCSN++): [B] -> [B, num_channels]; cosines first,
    or sines.
    """

    freqs: Tensor

    def __init__(self, num_channels: int, scale: float = 16, sin_first: bool = False) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)
        self.sin_first = sin_first

    def forward(self, x: Tensor) -> Tensor:
        return _sinusoids(x.ger((2 * np.pi * self.freqs).to(x.dtype)), self.sin_first)


def _sinusoids(angle: Tensor, sin_first: bool) -> Tensor:
    both = (angle.sin(), angle.cos()) if sin_first else (angle.cos(), angle.sin())
    return torch.cat(both, dim=1)
