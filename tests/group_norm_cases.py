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


def moved(value, device):
    """Tensors of a value, a tuple, a list or a dict on a device."""
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, Resample):
        return value._replace(filter=value.filter.to(device))
    if isinstance(value, tuple | list):
        return type(value)(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def check_against_torch(tried, arguments, options, device="cpu"):
    """Both results of ``tried`` within 1.5 of torch's error in the same dtype on the device, root mean square and
    maximum, against float64."""
    dtype = arguments[0].dtype
    wide = ops.group_norm(*wide_of(arguments), silu=True, **wide_of(options))
    arguments, options = moved(arguments, device), moved(options, device)
    plain = ops.group_norm(*arguments, silu=True, **options)
    got = tried(*arguments, silu=True, **options)
    results = 2 if "keep" in options else 1  # without it the second is nobody's
    for mine, torchs, exact in zip(got[:results], plain[:results], wide[:results], strict=True):
        assert mine.dtype == dtype
        assert mine.shape == torchs.shape
        assert mine.is_contiguous(memory_format=torch.channels_last)
        error, allowed = ((t.cpu().double() - exact).abs() for t in (mine, torchs))
        least = torch.finfo(dtype).eps * exact.abs().max()  # a lucky torch, of a few elements, is no yardstick
        assert error.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt() + least
        assert error.max() <= 1.5 * allowed.max() + least
    assert (got[1] is arguments[0]) == ("keep" not in options)
