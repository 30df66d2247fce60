"""Checkpoints of score_sde_pytorch and guided-diffusion against those networks written plainly, in float64."""

import pytest
import torch
from torch import nn

import engine
from tests.original_networks import ADM, NCSNpp

ADM_SAYS = {"img_resolution": 8, "class_name": "iDDPMPrecond", "num_head_channels": 64}
VE = {"img_resolution": 8, "class_name": "VEPrecond", "resample_filter": [1, 3, 3, 1]}
VP = {"img_resolution": 8, "class_name": "VPPrecond", "resample_filter": [1, 1]}


def randomise(network: nn.Module) -> nn.Module:
    """Weights of about the size that keeps activations of order one, so that every layer matters."""
    for p in network.parameters():
        fan = p[0].numel() if p.dim() > 1 else 4
        nn.init.normal_(p, mean=0.0 if p.dim() > 1 else 0.3, std=fan**-0.5)
    return network.eval()


def adm(**options) -> nn.Module:
    torch.manual_seed(0)
    return randomise(ADM(**{"channels": 128, "mult": [1, 2], "blocks": 1, "attention_ds": [2], "classes": 3} | options))


def ncsnpp(**options) -> nn.Module:
    torch.manual_seed(0)
    plain = {"nf": 8, "mult": [1, 2, 2], "blocks": 2, "size": 8, "attention": [4]}
    with_fourier = {"fourier": True, "taps": [1, 3, 3, 1], "progressive_input": "residual", "progressive": "none"}
    return randomise(NCSNpp(**plain | with_fourier | options))


def write_score_sde(path, network, legacy=False):
    """EMA weights are the network's; the model's own are others."""
    trained = [p for p in network.parameters() if p.requires_grad]
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    if "all_modules.0.W" in state:
        state["all_modules.0.W"] = network.state_dict()["all_modules.0.W"]
    optimizer = torch.optim.Adam(trained[:2]).state_dict()
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": [p.detach().clone() for p in trained]}
    saved = {"optimizer": optimizer, "model": {f"module.{key}": value for key, value in state.items()}}
    torch.save(saved | {"ema": ema, "step": 7}, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same(loaded, original, c_noise, labels=None, y=None):
    """Outputs of both in float64, from float32 weights, are equal to rounding."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = original.double()(x, c_noise, *(() if y is None else (y,)))
        out = loaded.double().model(x, c_noise, labels)
    assert expected.std() > 0.01
    assert out.shape == expected.shape
    assert (out - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("new_order", [False, True])
def test_adm(tmp_path, new_order):
    original = adm(new_order=new_order)
    torch.save(original.state_dict(), tmp_path / "adm.pt")
    loaded = engine.load(tmp_path / "adm.pt", config=ADM_SAYS | {"use_new_attention_order": new_order})
    assert loaded.preconditioning == engine.preconditioning.IDDPM()
    y = torch.tensor([2, 0])
    assert_same(loaded, original, torch.tensor([3.0, 700.0]), torch.eye(3, dtype=torch.float64)[y], y)


def test_adm_of_the_linear_schedule_converts(tmp_path):
    original = adm(classes=0, mult=[1, 1], attention_ds=[1, 2])
    torch.save(original.state_dict(), tmp_path / "adm.pt", _use_new_zipfile_serialization=False)
    says = ADM_SAYS | {"class_name": "DiscretePrecond", "schedule": "linear"}
    loaded = engine.load(tmp_path / "adm.pt", config=says)
    assert loaded.preconditioning == engine.preconditioning.Discrete()
    loaded.save(tmp_path / "adm.safetensors")
    converted = engine.load(tmp_path / "adm.safetensors")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(converted(x, 2.0), loaded(x, 2.0))
    assert_same(converted, original, torch.tensor([0.0, 999.0]))


@pytest.mark.parametrize("progressive_input", ["none", "input_skip", "residual"])
@pytest.mark.parametrize("progressive", ["none", "output_skip"])
def test_ncsnpp(tmp_path, progressive_input, progressive):
    original = ncsnpp(progressive_input=progressive_input, progressive=progressive)
    path = write_score_sde(tmp_path / "checkpoint.pth", original, legacy=progressive == "none")
    loaded = engine.load(path, config=VE | {"sigma_max": 80.0})
    assert loaded.preconditioning == engine.preconditioning.VE(sigma_max=80.0)
    assert_same(loaded, original, torch.tensor([-1.0, 2.5]))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_ddpmpp(tmp_path, taps):
    original = ncsnpp(fourier=False, taps=taps, progressive_input="none", mult=[1, 2], attention=[8])
    loaded = engine.load(write_score_sde(tmp_path / "x.pth", original), config=VP | {"resample_filter": taps})
    assert loaded.preconditioning == engine.preconditioning.VP()
    assert_same(loaded, original, torch.tensor([3.5, 900.0]))


def test_what_the_file_cannot_say_is_asked_for(tmp_path):
    torch.save(adm(channels=128).state_dict(), tmp_path / "adm.pt")
    with pytest.raises(ValueError, match=r"give in config: img_resolution \(pixels\), class_name \('iDDPMPrecond' for"):
        engine.load(tmp_path / "adm.pt")
    with pytest.raises(ValueError, match="num_head_channels is not 64"):
        engine.load(tmp_path / "adm.pt", config=ADM_SAYS | {"num_head_channels": 32})
    with pytest.raises(ValueError, match="config has label_dim 4; the tensors say 3"):
        engine.load(tmp_path / "adm.pt", config=ADM_SAYS | {"label_dim": 4})
    path = write_score_sde(tmp_path / "checkpoint.pth", ncsnpp())
    with pytest.raises(ValueError, match=r"give in config: resample_filter \(\[1, 3, 3, 1\] if it was trained with"):
        engine.load(path, config={"img_resolution": 8, "class_name": "VEPrecond"})
    with pytest.raises(ValueError, match="class_name is 'VPPrecond', which does not go with fourier embeddings"):
        engine.load(path, config=VP)


def test_what_is_not_one_of_our_networks(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="of score_sde_pytorch or guided-diffusion"):
        engine.load(path, config=VE)
    state = adm().state_dict()
    for key, value, message in [
        ("out.2.weight", torch.zeros(5, 128, 3, 3), "turns 3 channels into 5"),
        ("input_blocks.1.0.emb_layers.1.weight", None, "tensor input_blocks.1.0.emb_layers.1.weight is missing"),
        ("middle_block.0.in_layers.0.bias", None, "model.dec.4x4_in0.norm0.bias is missing"),
        ("middle_block.3.weight", torch.zeros(1), "middle_block.3.weight has no place in ADM"),
    ]:
        changed = {k: v for k, v in (state | {key: value}).items() if v is not None}
        torch.save(changed, path)
        with pytest.raises(ValueError, match=message):
            engine.load(path, config=ADM_SAYS)
    original = ncsnpp()
    original.all_modules[4] = nn.Linear(2, 2)
    write_score_sde(path, original)
    with pytest.raises(ValueError, match=r"all_modules.4 is linear where block belongs"):
        engine.load(path, config=VE)
    saved = torch.load(write_score_sde(path, ncsnpp()), weights_only=True)
    saved["ema"]["shadow_params"].pop()
    torch.save(saved, path)
    with pytest.raises(ValueError, match=r"no list ema.shadow_params of \d+ tensors"):
        engine.load(path, config=VE)
