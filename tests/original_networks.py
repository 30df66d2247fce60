"""ADM and NCSN++/DDPM++ written plainly, under the parameter names of guided-diffusion and score_sde_pytorch.

Only what a forward pass in eval mode needs; sinusoids are those of our own embedding, whose float32 frequencies differ
from the originals' in the last bit.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONSTANTS = torch.float32  # the precision in which frequencies and angles are computed


def angles(t: Tensor, half: int, last: int) -> Tensor:
    exponents = torch.arange(half, dtype=CONSTANTS) / last
    return t[:, None] * ((1 / 10000) ** exponents)[None]


# ----- guided-diffusion -----


class ADMBlock(nn.Module):
    def __init__(self, into: int, out: int, emb: int, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, into), nn.SiLU(), nn.Conv2d(into, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.1), last)
        self.skip_connection = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resampled(self.in_layers[:2](x)))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self.resampled(x)) + h


class ADMAttention(nn.Module):
    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        flat = x.reshape(batch, channels, -1)
        width = channels // self.heads
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.reshape(batch, 3, self.heads, width, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(batch, self.heads, 3, width, -1).unbind(2)
        weights = torch.einsum("bhct,bhcs->bhts", q, k).div(math.sqrt(width)).softmax(-1)
        a = torch.einsum("bhts,bhcs->bhct", weights, v).reshape(batch, channels, -1)
        return (flat + self.proj_out(a)).reshape(x.shape)


class ADM(nn.Module):
    """UNetModel with resblock_updown and use_scale_shift_norm."""

    def __init__(
        self,
        channels: int,
        mult: list[int],
        blocks: int,
        attention_ds: list[int],
        classes: int = 0,
        out: int = 6,
        new_order: bool = False,
    ) -> None:
        super().__init__()
        emb = 4 * channels
        self.channels = channels
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes:
            self.label_emb = nn.Embedding(classes, emb)

        def attention(width: int) -> ADMAttention:
            return ADMAttention(width, width // 64, new_order)

        width, ds = mult[0] * channels, 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        skips = [width]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers = [ADMBlock(width, m * channels, emb)]
                width = m * channels
                layers += [attention(width)] if ds in attention_ds else []
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(width)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([ADMBlock(width, width, emb, "down")]))
                skips.append(width)
                ds *= 2
        self.middle_block = nn.ModuleList([ADMBlock(width, width, emb), attention(width), ADMBlock(width, width, emb)])
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                layers = [ADMBlock(width + skips.pop(), m * channels, emb)]
                width = m * channels
                layers += [attention(width)] if ds in attention_ds else []
                if level and i == blocks:
                    layers.append(ADMBlock(width, width, emb, "up"))
                    ds //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        half = self.channels // 2
        angle = angles(t, half, half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1).to(x.dtype))
        emb = emb if y is None else emb + self.label_emb(y)

        def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                h = layer(h, emb) if isinstance(layer, ADMBlock) else layer(h)
            return h

        hs = []
        for layers in self.input_blocks:
            x = run(layers, x)
            hs.append(x)
        x = run(self.middle_block, x)
        for layers in self.output_blocks:
            x = run(layers, torch.cat([x, hs.pop()], dim=1))
        return self.out(x)


# ----- score_sde_pytorch -----


def fir(x: Tensor, taps: list[int], up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """upfirdn: zeros between pixels, zero padding, the separable filter, decimation; with a plain convolution."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height, up, width, up)
    spread[:, :, :, 0, :, 0] = x
    spread = F.pad(spread.reshape(batch, channels, height * up, width * up), [*pad, *pad])
    k = torch.tensor(taps, dtype=x.dtype)
    k = torch.outer(k, k) / k.sum() ** 2 * up**2
    kernel = k.flip(0, 1).expand(channels, 1, -1, -1)
    return F.conv2d(spread, kernel, groups=channels)[:, :, ::down, ::down]


def upsample(x: Tensor, taps: list[int]) -> Tensor:
    p = len(taps) - 2
    return fir(x, taps, up=2, pad=((p + 1) // 2 + 1, p // 2))


def downsample(x: Tensor, taps: list[int]) -> Tensor:
    p = len(taps) - 2
    return fir(x, taps, down=2, pad=((p + 1) // 2, p // 2))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class NIN(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(into, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bihw,io->bohw", x, self.W) + self.b[:, None, None]


class ScoreAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1])).softmax(-1)
        a = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
        return (x + self.NIN_3(a)) / math.sqrt(2)


class ScoreBlock(nn.Module):
    """ResnetBlockBigGANpp with skip_rescale."""

    def __init__(self, into: int, out: int, emb: int, taps: list[int], resample: str = "") -> None:
        super().__init__()
        self.taps, self.resample = taps, resample
        self.GroupNorm_0 = norm(into)
        self.Conv_0 = nn.Conv2d(into, out, 3, padding=1)
        self.Dense_0 = nn.Linear(emb, out)
        self.GroupNorm_1 = norm(out)
        self.Conv_1 = nn.Conv2d(out, out, 3, padding=1)
        if into != out or resample:
            self.Conv_2 = nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample:
            change = upsample if self.resample == "up" else downsample
            h, x = change(h, self.taps), change(x, self.taps)
        h = self.Conv_0(h) + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class Fourier(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(size) * 16, requires_grad=False)


class Resample(nn.Module):
    """A pyramid's up- or downsampling, with a convolution (Conv2d_0) or without any parameter."""

    def __init__(self, taps: list[int], up: bool = False, channels: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.taps, self.up = taps, up
        if channels:
            self.Conv2d_0 = nn.Conv2d(*channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "Conv2d_0"):
            return upsample(x, self.taps) if self.up else downsample(x, self.taps)
        p = len(self.taps) - 2 + 2
        return self.Conv2d_0(fir(x, self.taps, pad=((p + 1) // 2, p // 2)))


class Combine(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.Conv = nn.Conv2d(into, out, 1)


class NCSNpp(nn.Module):
    """NCSNpp of BigGAN blocks; progressive_input "none", "input_skip" (summed) or "residual", progressive "none" or
    "output_skip"."""

    def __init__(
        self,
        nf: int,
        mult: list[int],
        blocks: int,
        size: int,
        attention: list[int],
        fourier: bool,
        taps: list[int],
        progressive_input: str,
        progressive: str,
    ) -> None:
        super().__init__()
        self.nf, self.mult, self.blocks, self.attention = nf, mult, blocks, attention
        self.progressive_input, self.progressive = progressive_input, progressive
        self.register_buffer("sigmas", torch.linspace(50, 0.01, 10))
        emb = 4 * nf
        modules: list[nn.Module] = [Fourier(nf)] if fourier else []
        modules += [nn.Linear(2 * nf if fourier else nf, emb), nn.Linear(emb, emb), nn.Conv2d(3, nf, 3, padding=1)]
        width, skips, pyramid = nf, [nf], 3
        for level, m in enumerate(mult):
            for _ in range(blocks):
                modules.append(ScoreBlock(width, m * nf, emb, taps))
                width = m * nf
                modules += [ScoreAttention(width)] if size >> level in attention else []
                skips.append(width)
            if level < len(mult) - 1:
                modules.append(ScoreBlock(width, width, emb, taps, "down"))
                if progressive_input == "input_skip":
                    modules += [Resample(taps), Combine(pyramid, width)]
                if progressive_input == "residual":
                    modules.append(Resample(taps, channels=(pyramid, width)))
                    pyramid = width
                skips.append(width)
        modules += [ScoreBlock(width, width, emb, taps), ScoreAttention(width), ScoreBlock(width, width, emb, taps)]
        for level, m in reversed(list(enumerate(mult))):
            for _ in range(blocks + 1):
                modules.append(ScoreBlock(width + skips.pop(), m * nf, emb, taps))
                width = m * nf
            modules += [ScoreAttention(width)] if size >> level in attention else []
            if progressive == "output_skip":
                modules += [Resample(taps, up=True)] if level < len(mult) - 1 else []
                modules += [norm(width), nn.Conv2d(width, 3, 3, padding=1)]
            modules += [ScoreBlock(width, width, emb, taps, "up")] if level else []
        if progressive == "none":
            modules += [norm(width), nn.Conv2d(width, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """c_noise: log sigma with Fourier features, else the timestep."""
        modules = iter(self.all_modules)
        layer = next(modules)
        if isinstance(layer, Fourier):
            angle = c_noise[:, None] * (2 * math.pi * layer.W).to(c_noise.dtype)
            layer = next(modules)
        else:
            angle = angles(c_noise, self.nf // 2, self.nf // 2 - 1)
        temb = layer(torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype))
        temb = next(modules)(F.silu(temb))
        pyramid = x
        hs = [next(modules)(x)]
        for level in range(len(self.mult)):
            for _ in range(self.blocks):
                h = next(modules)(hs[-1], temb)
                h = next(modules)(h) if h.shape[-1] in self.attention else h
                hs.append(h)
            if level < len(self.mult) - 1:
                h = next(modules)(hs[-1], temb)
                if self.progressive_input == "input_skip":
                    pyramid = next(modules)(pyramid)
                    h = next(modules).Conv(pyramid) + h
                if self.progressive_input == "residual":
                    h = pyramid = (next(modules)(pyramid) + h) / math.sqrt(2)
                hs.append(h)
        h = next(modules)(hs[-1], temb)
        h = next(modules)(h)
        h = next(modules)(h, temb)
        image: Tensor | None = None
        for level in reversed(range(len(self.mult))):
            for _ in range(self.blocks + 1):
                h = next(modules)(torch.cat([h, hs.pop()], dim=1), temb)
            h = next(modules)(h) if h.shape[-1] in self.attention else h
            if self.progressive == "output_skip":
                image = None if image is None else next(modules)(image)
                normed = F.silu(next(modules)(h))
                drawn = next(modules)(normed)
                image = drawn if image is None else image + drawn
            h = next(modules)(h, temb) if level else h
        if image is not None:
            return image
        normed = F.silu(next(modules)(h))
        return next(modules)(normed)
