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
class Transforms:
    """What is done to each image of a batch, float32 [B] each; all zero leaves an image alone.

    flip_x, flip_y: 0 or 1. log_scale, log_aniso: log2 of the factors, in units of `Augment.scale_std`. angle,
    aniso_angle: radians, clockwise. shift_x, shift_y: right and down, in units of `Augment.translate_std`.
    """

    flip_x: Tensor
    flip_y: Tensor
    log_scale: Tensor
    angle: Tensor
    aniso_angle: Tensor
    log_aniso: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def labels(self) -> Tensor:
        """a_0 .. a_8 of Table 6, [B, AUGMENT_DIM]: what the network is told."""
        turn = [self.angle.cos() - 1, self.angle.sin()]
        stretch = [self.log_aniso * self.aniso_angle.cos(), self.log_aniso * self.aniso_angle.sin()]
        flips = [self.flip_x, self.flip_y]
        return torch.stack([*flips, self.log_scale, *turn, *stretch, self.shift_x, self.shift_y], dim=1)


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
        """images [B, C, H, W] float32 -> (augmented images, augment_labels [B, AUGMENT_DIM] float32)."""
        transforms = self.draw(images.shape[0], generator)
        return self.apply(images, transforms), transforms.labels()

    def draw(self, batch: int, generator: torch.Generator) -> Transforms:
        """Random transforms for a batch."""

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
        return Transforms(flip_x, flip_y, log_scale, angle, aniso_angle, log_aniso, shift_x, shift_y)

    def apply(self, images: Tensor, transforms: Transforms) -> Tensor:
        """images [B, C, H, W] float32 with one transform each."""
        t = transforms
        forward = (
            _diagonal(1 - 2 * t.flip_x, 1 - 2 * t.flip_y)
            @ _diagonal(2 ** (t.log_scale * self.scale_std), 2 ** (t.log_scale * self.scale_std))
            @ _rotation(t.angle)
            @ _rotation(t.aniso_angle)
            @ _diagonal(2 ** (t.log_aniso * self.scale_std), 2 ** (-t.log_aniso * self.scale_std))
            @ _rotation(-t.aniso_angle)
        )
        shift = torch.stack([t.shift_x, t.shift_y], dim=1) * self.translate_std * 2  # grid units: the image spans 2
        return _warp(images, forward, shift, untouched=t.labels().abs().sum(1) == 0)


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
