"""Arguments for our own convolution, and the yardstick it is held to."""

import torch
import torch.nn.functional as F

SHAPES = [  # batch, channels in, channels out, height, width, kernel
    (1, 16, 32, 4, 5, 3),
    (2, 48, 80, 3, 3, 1),
    (1, 144, 16, 6, 7, 3),
    (3, 32, 96, 1, 1, 3),
    (2, 32, 3, 5, 4, 3),
]


def case(shape, dtype, seed=0):
    """x, weight, bias, past in channels_last."""
    batch, channels_in, channels_out, height, width, kernel = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(dtype)

    x = normal(batch, channels_in, height, width).contiguous(memory_format=torch.channels_last)
    past = normal(batch, channels_out, height, width).contiguous(memory_format=torch.channels_last)
    weight = normal(channels_out, channels_in, kernel, kernel) / (channels_in * kernel**2) ** 0.5
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return x, weight, normal(channels_out), past


def check_against_torch(tried, arguments, device="cpu"):
    """Within 1.5 of the error of torch's convolution, then bias and sum, in the same dtype, against float64."""
    x, weight, bias, past = arguments
    padding = weight.shape[2] // 2
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    exact = exact if past is None else exact + past.double()
    there = [None if t is None else t.to(device) for t in arguments]
    plain = F.conv2d(there[0], there[1], there[2], padding=padding)
    plain = plain if past is None else plain + there[3]
    got = tried(*there)
    assert got.dtype == x.dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    error, allowed = ((t.cpu().double() - exact).abs() for t in (got, plain))
    least = torch.finfo(x.dtype).eps * exact.abs().max() / 2  # a lucky torch, of a few elements, is no yardstick
    assert error.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt()
    assert error.max() <= 1.5 * allowed.max() + least
