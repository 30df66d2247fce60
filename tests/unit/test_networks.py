"""The UNets against the published facts: names, shapes, sizes, FLOPs, and the formulas they are made of."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import engine
from engine.networks import DhariwalUNet, SongUNet, ops
from engine.networks.layers import Conv2d, FourierEmbedding, Linear, PositionalEmbedding
from engine.networks.precision import cast_network

CIFAR = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_sizes_of_the_published_networks():
    with torch.device("meta"):
        ddpmpp = SongUNet(32, 3, 3, label_dim=10, augment_dim=9, **CIFAR)
        ncsnpp = SongUNet(32, 3, 3, label_dim=10, augment_dim=9, **CIFAR, **NCSNPP)
        adm = DhariwalUNet(64, 3, 3, label_dim=1000)
    assert parameters(ddpmpp) == 55_735_299
    assert parameters(ncsnpp) == 56_400_643
    assert parameters(adm) == 295_899_267


def test_flops_of_the_cifar10_network():
    network = SongUNet(32, 3, 3, label_dim=10, **CIFAR).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1), torch.zeros(1, 10))
    assert counter.get_total_flops() / 1e9 == pytest.approx(42.38, abs=0.005)


def test_published_state_dict_keys():
    with torch.device("meta"):
        state = SongUNet(32, 3, 3, label_dim=10, augment_dim=9, **CIFAR, **NCSNPP).state_dict()
        adm = DhariwalUNet(64, 3, 3, label_dim=1000, augment_dim=9).state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    assert shapes["enc.32x32_block0.conv0.weight"] == [256, 128, 3, 3]
    assert shapes["map_noise.freqs"] == [128]
    assert shapes["map_augment.weight"] == [256, 9]
    assert "map_augment.bias" not in shapes
    assert shapes["enc.16x16_aux_residual.weight"] == [256, 3, 3, 3]
    assert shapes["enc.16x16_aux_residual.resample_filter"] == [1, 1, 4, 4]
    assert shapes["enc.16x16_down.skip.resample_filter"] == [1, 1, 4, 4]
    assert shapes["enc.16x16_block3.qkv.weight"] == [768, 256, 1, 1]
    assert shapes["dec.8x8_in0.norm2.bias"] == [256]
    assert shapes["dec.32x32_block4.skip.weight"] == [256, 384, 1, 1]
    assert shapes["dec.32x32_aux_conv.weight"] == [3, 256, 3, 3]
    assert list(adm["map_label.weight"].shape) == [768, 1000]
    assert "map_label.bias" not in adm
    assert list(adm["enc.64x64_block0.affine.weight"].shape) == [384, 768]
    assert list(adm["enc.32x32_down.skip.resample_filter"].shape) == [1, 1, 2, 2]
    assert "enc.32x32_down.skip.weight" not in adm
    assert list(adm["dec.64x64_block3.conv0.weight"].shape) == [192, 384, 3, 3]


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_every_song_variant_runs_on_non_square_images(encoder, decoder, taps):
    torch.manual_seed(0)
    network = SongUNet(
        16,
        2,
        3,
        label_dim=4,
        augment_dim=9,
        encoder_type=encoder,
        decoder_type=decoder,
        resample_filter=taps,
        **TINY,
    ).eval()
    x = torch.randn(2, 2, 16, 24)
    with torch.no_grad():
        out = network(x, torch.tensor([0.1, 0.2]), torch.eye(4)[:2], torch.randn(2, 9))
        alone = network(x[1:], torch.tensor([0.2]), torch.eye(4)[1:2], torch.zeros(1, 9))
        bare = network(x[1:], torch.tensor([0.2]), torch.eye(4)[1:2])
    assert out.shape == (2, 3, 16, 24)
    assert torch.isfinite(out).all()
    assert torch.equal(alone, bare)  # no augmentation is zero conditioning


def test_every_input_reaches_the_output():
    torch.manual_seed(0)
    network = SongUNet(16, 1, 1, label_dim=4, augment_dim=9, **TINY).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    base = (torch.randn(1, 1, 16, 16), torch.tensor([0.1]), torch.eye(4)[:1], torch.zeros(1, 9))
    changed = (torch.randn(1, 1, 16, 16), torch.tensor([0.9]), torch.eye(4)[1:2], torch.ones(1, 9))
    with torch.no_grad():
        out = network(*base)
        for i in range(4):
            arguments = (*base[:i], changed[i], *base[i + 1 :])
            assert not torch.allclose(network(*arguments), out)


def test_label_and_option_errors():
    with pytest.raises(ValueError, match="class_labels is None"):
        SongUNet(16, 1, 1, label_dim=4, **TINY)(torch.zeros(1, 1, 16, 16), torch.zeros(1))
    with pytest.raises(ValueError, match="encoder_type is 'dense'; allowed: standard, skip, residual"):
        SongUNet(16, 1, 1, encoder_type="dense")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": "32"}, "model_channels is '32'; allowed: an integer from 1"),
        ({"attn_resolutions": 8}, "attn_resolutions is 8; allowed: a list of integers from 0"),
        ({"channel_mult": []}, r"channel_mult is \[\]; allowed: a list of integers from 1"),
        ({"label_dim": -1}, "label_dim is -1; allowed: an integer from 0"),
        ({"num_blocks": -1}, "num_blocks is -1; allowed: an integer from 0"),
        ({"dropout": 2.0}, "dropout is 2.0; allowed: a number from 0 to 1"),
        (
            {"model_channels": 2},
            "a layer has 2 channels; allowed: numbers that make up to 32 equal groups of 4 or more",
        ),
    ],
)
@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_sizes_that_make_no_network(model_type, changes, message):
    sizes = {"img_resolution": 8, "img_channels": 3, "model_channels": 8, "channel_mult": [1], "num_blocks": 1}
    with pytest.raises(ValueError, match=message):
        engine.Denoiser.from_config({"class_name": "EDMPrecond", "model_type": model_type} | sizes | changes)


@pytest.mark.parametrize("kind", [PositionalEmbedding, FourierEmbedding])
def test_sinusoids_of_the_noise_level_in_either_order(kind):
    cosines_first, sines_first = kind(16), kind(16, sin_first=True)
    sines_first.load_state_dict(cosines_first.state_dict())
    x = torch.linspace(-1.5, 1.1, 5)
    published = cosines_first(x).reshape(5, 2, 8)
    assert torch.equal(sines_first(x).reshape(5, 2, 8), published.flip(1))
    assert (published.square().sum(1) - 1).abs().max() < 1e-6
    if kind is PositionalEmbedding:
        exact = torch.stack([(x.double() * 10000 ** (-i / 8)).cos() for i in range(8)], 1)
        assert (published[:, 0] - exact).abs().max() < 1e-6


def test_attention_is_the_published_formula():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 16).unbind(0)
    weights = torch.softmax(torch.einsum("bhqc,bhkc->bhqk", q, k) / 16**0.5, dim=-1)
    torch.testing.assert_close(ops.attention(q, k, v), torch.einsum("bhqk,bhkc->bhqc", weights, v))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_resampling_is_the_filter_it_says(taps):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 8, 12, dtype=torch.float64)
    up = Conv2d(2, 2, 0, up=True, resample_filter=taps)(x)
    down = Conv2d(2, 2, 0, down=True, resample_filter=taps)(x)
    assert up.shape == (1, 2, 16, 24)
    assert down.shape == (1, 2, 4, 6)
    f = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    pad = (len(taps) - 2) // 2
    padded = torch.nn.functional.pad(x, [pad] * 4)
    windows = padded.unfold(2, len(taps), 2).unfold(3, len(taps), 2)
    torch.testing.assert_close(down, torch.einsum("bchwij,i,j->bchw", windows, f, f))
    ones = torch.ones_like(x)
    interior = Conv2d(2, 2, 0, up=True, resample_filter=taps)(ones)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(interior, torch.ones_like(interior))  # both phases keep the mean


def test_weights_of_one_pixel_have_the_strides_of_channels_last_too():
    """Torch chooses a convolution by them: with others captured loops and eager ones came to other bits."""
    network = cast_network(torch.nn.Sequential(Conv2d(4, 8, 1), Conv2d(1, 8, 3)), torch.bfloat16)
    assert [network[i].weight.stride() for i in (0, 1)] == [(4, 1, 4, 4), (9, 1, 3, 1)]


def test_cast_keeps_the_embedding_in_float32():
    network = cast_network(SongUNet(16, 1, 1, label_dim=4, **TINY).eval(), torch.bfloat16)
    assert network.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for m in network.modules() if isinstance(m, Linear) for p in m.parameters())
    with torch.no_grad():
        out = network(torch.randn(1, 1, 16, 16).bfloat16(), torch.tensor([0.1]), torch.eye(4)[:1])
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_by_channels_is_as_exact_as_torchs(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 24, 10, 6, generator=generator) * 3 + 1).to(dtype).contiguous(memory_format=layout)
    weight, bias = (torch.randn(24, generator=generator).to(dtype) for _ in range(2))
    exact = torch.nn.functional.group_norm(x.double(), 6, weight.double(), bias.double(), 1e-6)
    torch_norm = lambda *arguments: ops.group_norm(*arguments)[0]  # noqa: E731
    torchs, ours = (
        (f(x, weight, bias, 6, 1e-6).double() - exact).abs() for f in (torch_norm, ops.group_norm_by_channels)
    )
    assert ours.max() <= 1.5 * torchs.max()
    assert ours.square().mean() <= 1.5**2 * torchs.square().mean()


def test_group_norm_by_channels_of_a_constant_is_the_bias():
    """Rounding can make E[x^2] - E[x]^2 negative; 6 channels a group is ADM's width."""
    weight, bias = torch.ones(12, dtype=torch.bfloat16), torch.full([12], 0.5, dtype=torch.bfloat16)
    for value in range(1, 100):
        x = torch.full((1, 12, 4, 4), float(value), dtype=torch.bfloat16)
        assert (ops.group_norm_by_channels(x, weight, bias, 2, 1e-5) - 0.5).abs().max() < 0.1, value


@pytest.mark.parametrize("kind", [SongUNet, DhariwalUNet])
def test_a_network_in_training_is_one_graph(kind):
    """A branch on what torch.compile takes for a tensor cuts it in pieces: training then runs at half the speed."""
    torch.compiler.reset()
    options = TINY | {"model_channels": 32} if kind is DhariwalUNet else TINY
    network = kind(16, 3, 3, **options).train()
    explained = torch._dynamo.explain(network)(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    assert explained.graph_count == 1, explained.break_reasons
