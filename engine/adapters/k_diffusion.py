"""A model of k-diffusion, ``denoiser(x, sigma, **extra_args)``, as the network of a `Denoiser`.

The other way needs no adapter: a `Denoiser` is called in that way, so k-diffusion's samplers take it as their model,
with ``extra_args={"class_labels": ...}`` [B, label_dim] for a conditional one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..denoiser import Denoiser
from ..preconditioning import Direct

ExtraArgs = Callable[[Tensor | None], Mapping[str, Any]]


def from_k_diffusion(
    denoiser: Callable[..., Tensor],
    *,
    img_shape: tuple[int, ...],
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    label_dim: int = 0,
    extra_args: ExtraArgs | None = None,
) -> Denoiser:
    """A wrapper of ``k_diffusion.external``, or any callable that returns D(x; sigma), as a denoiser.

    denoiser: called with x [B, C, *spatial] in its own dtype and sigma [B] float32; it must not write to x. An engine
    works on a copy of a module, in eval mode, and in another dtype if asked: these wrappers then precondition in half
    precision too, so float32 is the one to use. sigma_min, sigma_max: the noise levels
    it knows; None: its own ``sigma_min`` and ``sigma_max``. label_dim: 0 for an unconditional one. extra_args: makes
    the keyword arguments of a call from the batch's class_labels [B, label_dim] (None if unconditional); by default
    ``{"class_labels": class_labels}``, or nothing.

    Raises ValueError if the noise levels are neither given nor known, or are no range.
    """
    if not callable(denoiser):
        raise ValueError(f"denoiser is a {type(denoiser).__name__}; allowed: a callable denoiser(x, sigma)")
    low, high = (_level(denoiser, *named) for named in (("sigma_min", sigma_min), ("sigma_max", sigma_max)))
    if not 0 <= low < high:
        raise ValueError(f"sigma_min is {low}, sigma_max {high}; allowed: a range of numbers from 0")
    network = KDiffusionNetwork(denoiser, label_dim, extra_args or _class_labels)
    return Denoiser(network, Direct(low, high), img_shape=img_shape)


class KDiffusionNetwork(nn.Module):
    """model(x, sigma, class_labels) around ``denoiser``."""

    def __init__(self, denoiser: Callable[..., Tensor], label_dim: int, extra_args: ExtraArgs) -> None:
        super().__init__()
        self.denoiser, self.label_dim, self.extra_args = denoiser, label_dim, extra_args

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        D = self.denoiser(x, sigma, **self.extra_args(class_labels))
        # One that returns its input, or a part of it: the engine fills that buffer again before D is done with.
        shared = isinstance(D, Tensor) and D.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        return D.clone() if shared else D


def _class_labels(class_labels: Tensor | None) -> dict[str, Tensor]:
    return {} if class_labels is None else {"class_labels": class_labels}


def _level(denoiser: object, name: str, given: float | None) -> float:
    value = getattr(denoiser, name, None) if given is None else given
    if value is None:
        raise ValueError(f"{name} is None, and {type(denoiser).__name__} has none; allowed: the noise level it knows")
    return float(value)
