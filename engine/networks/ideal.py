"""Denoisers in closed form, whose answers are known: tests and figures need them. Use with preconditioning.Direct."""

import torch
from torch import Tensor, nn

from ..denoiser import per_sample


class IdealNetwork(nn.Module):
    """The optimal D for a finite data set y_1..y_n (the paper's Appendix B.3, equation 57).

    D(x; sigma) = sum_i w_i y_i with w = softmax(-|x - y_i|^2 / (2 sigma^2)). data: [n, C, *spatial].
    """

    data: Tensor

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.register_buffer("data", data)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        data = self.data.flatten(1)
        distance = (x.flatten(1)[:, None] - data).square().sum(-1)
        weights = torch.softmax(-distance / (2 * sigma.to(x.dtype).square()[:, None]), dim=1)
        return (weights @ data).reshape(x.shape)


class GaussianNetwork(nn.Module):
    """The optimal D for data ~ N(mean, std^2 I): D = (std^2 x + sigma^2 mean) / (std^2 + sigma^2)."""

    mean: Tensor

    def __init__(self, mean: Tensor, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.std = std

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = per_sample(sigma.to(x.dtype), x).square()
        return (self.std**2 * x + variance * self.mean) / (self.std**2 + variance)

    def solution(self, x: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        """Where the probability-flow ODE (equation 1) carries x from one noise level to another, exactly."""
        ratio = ((self.std**2 + sigma_to**2) / (self.std**2 + sigma_from**2)) ** 0.5
        return self.mean + (x - self.mean) * ratio
