"""The EDM training objective (Table 1, "training"; equations 8 and following)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..denoiser import per_sample


@dataclass(frozen=True)
class EDMLoss:
    """lambda(sigma) |D(y + n; sigma) - y|^2 with ln sigma ~ N(P_mean, P_std^2), n ~ N(0, sigma^2 I)."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def sigma(self, batch: int, generator: torch.Generator) -> Tensor:
        """Noise levels [batch], float32."""
        return (torch.randn(batch, generator=generator) * self.P_std + self.P_mean).exp()

    def __call__(
        self,
        denoiser: nn.Module,
        images: Tensor,
        eps: Tensor,
        sigma: Tensor,
        class_labels: Tensor,
        augment: Tensor,
    ) -> Tensor:
        """The weighted squared error of each sample, [B] float32, averaged over its pixels."""
        noisy = images + eps * per_sample(sigma, images)
        error = (denoiser(noisy, sigma, class_labels, augment) - images).square().flatten(1).mean(1)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return weight * error
