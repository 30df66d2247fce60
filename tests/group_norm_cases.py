"""Arguments for `ops.group_norm`, and the yardstick every implementation of it is held to."""

import torch

from engine.networks import ops
from engine.networks.ops import Resample


def case(shape, dtype, seed=0, spread=2.0, mean=0.3):
    """The norm's arguments, and all that can stand around it."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, *size = shape

    def normal(*size):
        return torch.randn(*size, generator=generator)

    def image(channels):
        return (normal(batch, channels, *size) * spread + mean).to(dtype).contiguous(memory_format=torch.channels_last)

    x, beside = image(channels), image(channels // 2)
    weight, bias = (1 + 0.1 * normal(channels)).to(dtype), normal(channels).to(dtype)
    each = {
        "add": normal(batch, channels),
        "scale_shift": (normal(batch, channels) / 3, normal(batch, channels)),
        "beside": beside,
        "keep": 0.5**0.5,
    }
    return (x, weight, bias, min(32, channels // 4), 1e-5), each


def resampling(taps, up):
    filter = torch.tensor(taps) / sum(taps)
    return Resample(filter.outer(filter)[None, None], tuple(filter.tolist()), up)


def wide_of(values):
    """The same in float64; of a dict too."""
    if isinstance(values, dict):
        return dict(zip(values, wide_of(values.values()), strict=True))
    return [doubled(value) for value in values]


def doubled(value):
    if isinstance(value, Resample):
        return value
    if isinstance(value, tuple):
        return tuple(map(doubled, value))
    return value.double() if isinstance(value, torch.Tensor) else value


def check_against_torch(tried, arguments, options):
    """Both results of ``tried`` within 1.5 of torch's error in the same dtype, root mean square and maximum."""
    x, dtype = arguments[0], arguments[0].dtype
    wide = ops.group_norm(*wide_of(arguments), silu=True, **wide_of(options))
    plain = ops.group_norm(*arguments, silu=True, **options)
    got = tried(*arguments, silu=True, **options)
    for mine, torchs, exact in zip(got, plain, wide, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == torchs.shape
        assert mine.is_contiguous(memory_format=torch.channels_last)
        error, allowed = (mine.double() - exact).abs(), (torchs.double() - exact).abs()
        least = torch.finfo(dtype).eps * exact.abs().max()  # a lucky torch, of a few elements, is no yardstick
        assert error.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt() + least
        assert error.max() <= 1.5 * allowed.max() + least
    assert (got[1] is x) == (not {"beside", "keep", "resample"} & set(options))
