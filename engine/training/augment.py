"""Non-leaking augmentation (Table 6 of the EDM paper): geometric transforms with a 9-dim conditioning vector.

The network sees which transform was applied, so at zero conditioning it draws untransformed images.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENT_DIM = 9


@dataclass(frozen=True)
class Augment:
    """Each transform is applied with probability ``p``, but the horizontal flip to ``flip_p`` of all images.

    The paper flips half of them; images that all face one way (Fashion-MNIST's shoes) learn faster with fewer.
    """

    p: float = 0.12
    flip_p: float = 0.5
    scale_std: float = 0.2  # log2 of the factor
    translate_std: float = 0.125  # fraction of the image

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """images [B, C, H, W] float32 -> (augmented images, augment_labels [B, 9] float32)."""
        batch = images.shape[0]

        def normal() -> Tensor:
            return torch.randn(batch, generator=generator)

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator)

        def chosen() -> Tensor:
            return (uniform() < self.p).float()

        flip_x = (uniform() < self.flip_p).float()
        flip_y = (uniform() < 0.5).float() * chosen()
        log_scale = normal() * chosen()
        angle = (uniform() * 2 - 1) * math.pi * chosen()
        aniso_angle = (uniform() * 2 - 1) * math.pi
        log_aniso = normal() * chosen()
        shift_on = chosen()
        shift_x, shift_y = normal() * shift_on, normal() * shift_on
        turn = [angle.cos() - 1, angle.sin()]
        stretch = [log_aniso * aniso_angle.cos(), log_aniso * aniso_angle.sin()]
        labels = torch.stack([flip_x, flip_y, log_scale, *turn, *stretch, shift_x, shift_y], dim=1)
        forward = (
            _diagonal(1 - 2 * flip_x, 1 - 2 * flip_y)
            @ _diagonal(2 ** (log_scale * self.scale_std), 2 ** (log_scale * self.scale_std))
            @ _rotation(angle)
            @ _rotation(aniso_angle)
            @ _diagonal(2 ** (log_aniso * self.scale_std), 2 ** (-log_aniso * self.scale_std))
            @ _rotation(-aniso_angle)
        )
        shift = torch.stack([shift_x, shift_y], dim=1) * self.translate_std * 2  # grid units: the image spans 2
        return _warp(images, forward, shift, untouched=labels.abs().sum(1) == 0), labels


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y], dim=1))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)


def _warp(images: Tensor, forward: Tensor, shift: Tensor, untouched: Tensor) -> Tensor:
    """Resample at the inverse transform of each output pixel; images without a transform keep their exact pixels.

    Bicubic on a reflected border: the paper's wavelet filters buy little at 32x32 and cost a dependency.
    """
    inverse = torch.linalg.inv(forward)
    theta = torch.cat([inverse, -(inverse @ shift[:, :, None])], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return torch.where(untouched[:, None, None, None], images, warped.clamp(-1, 1))
