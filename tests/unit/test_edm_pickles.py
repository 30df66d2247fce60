"""The published EDM pickles: in exactly their layout, read without executing what they hold."""

import pytest
import torch
from torch import nn

import engine
from tests.edm_layout import Record, dump, snapshot

SONG = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
ADM = {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1}
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"} | {
    "resample_filter": [1, 3, 3, 1],
}
KINDS = {
    "EDMPrecond": SONG | {"sigma_data": 0.4, "augment_dim": 9},
    "VPPrecond": SONG | {"beta_d": 18.0},
    "VEPrecond": SONG | NCSNPP | {"sigma_max": 80},
    "iDDPMPrecond": ADM | {"M": 20},
}
SHAPE = {"img_resolution": 8, "img_channels": 3, "label_dim": 4}


def denoiser(kind="EDMPrecond"):
    torch.manual_seed(0)
    made = engine.Denoiser.from_config({"class_name": kind} | SHAPE | KINDS[kind])
    for p in made.parameters():
        nn.init.normal_(p, std=0.1)
    return made.eval()


def write(path, *arguments, **options):
    path.write_bytes(dump(*arguments, **options))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_preconditioning(tmp_path, kind):
    original = denoiser(kind)
    loaded = engine.load(write(tmp_path / "net.pkl", snapshot(original)))
    assert loaded.preconditioning == original.preconditioning
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), original.parameters(), strict=True))
    x, labels = torch.randn(2, 3, 8, 8), torch.eye(4)[:2]
    assert torch.equal(loaded(x, 0.7, labels), original(x, 0.7, labels))


@pytest.mark.parametrize(
    ("protocol", "storage_format"),
    [(2, "legacy"), (3, "zip"), (4, "legacy"), (4, "zip"), (4, "cuda"), (5, "cuda")],
)
def test_every_protocol_and_storage_format(tmp_path, protocol, storage_format):
    original = denoiser()
    data = snapshot(original, positional=3)
    loaded = engine.load(write(tmp_path / "net.pkl", data, protocol=protocol, storage_format=storage_format))
    for key, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_half_precision_and_views(tmp_path):
    original = denoiser()
    data = snapshot(original)
    weights = data["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]["map_layer0"].meta["state"]
    weight = weights["_parameters"]["weight"]
    storage = torch.cat([torch.zeros(7, weight.shape[0]), weight.detach().t(), torch.zeros(3, weight.shape[0])])
    weights["_parameters"]["weight"] = nn.Parameter(storage.half()[7:-3].t())
    loaded = engine.load(write(tmp_path / "net.pkl", data))
    assert torch.equal(loaded.model.map_layer0.weight, weight.half().float())


def test_converted_file_draws_the_same_images(tmp_path):
    source = engine.load(write(tmp_path / "net.pkl", snapshot(denoiser())))
    source.save(tmp_path / "net.safetensors")
    converted = engine.load(tmp_path / "net.safetensors")
    sampler = engine.samplers.edm(3)
    first, second = (
        engine.sample(net, seeds=[1, 2], class_labels=[0, 3], sampler=sampler) for net in (source, converted)
    )
    assert torch.equal(first, second)


def broken(change):
    data = snapshot(denoiser())
    change(data["ema"].meta, data["ema"].meta["state"])
    return data


def model_of(state):
    return state["_modules"]["model"].meta["state"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta, state: meta.update(class_name="Precond"), "EDM2's Precond; its magnitude-preserving UNet"),
        (lambda meta, state: meta.update(class_name="Generator"), "its network is a 'Generator'; allowed: VPPrecond"),
        (lambda meta, state: meta.update(version=5), "a persistent object that is not a class of version 6"),
        (lambda meta, state: state.pop("_init_kwargs"), "does not say what it was constructed with"),
        (lambda meta, state: state["_init_kwargs"].update(width=3), "width is not a keyword of EDMPrecond or SongUNet"),
        (lambda meta, state: state["_init_kwargs"].update(sigma_data="1"), "sigma_data is '1'; allowed: a number"),
        (
            lambda meta, state: state["_init_kwargs"].update(num_blocks=10**9),
            "num_blocks and channel_mult in its config do not fit 149 tensors",
        ),
        (
            lambda meta, state: state["_init_kwargs"].update(model_channels=10**6),
            "tensors do not fit the config: first of 144: model.dec.4x4_block0.affine.bias is (16,), the config has it",
        ),
        (
            lambda meta, state: state["_init_kwargs"].update(model_channels=10**12),
            "no network can be built from its config",
        ),
        (
            lambda meta, state: model_of(state)["_modules"].pop("map_label"),
            "first of 2: model.map_label.bias is missing, the config has it (8,)",
        ),
        (
            lambda meta, state: state["_buffers"].update(u=torch.zeros(3)),
            "first of 1: u is (3,), the config has it unexpected",
        ),
        (
            lambda meta, state: model_of(state)["_modules"]["map_layer0"].meta["state"]["_parameters"].update(
                bias=torch.zeros(32, dtype=torch.int64)
            ),
            "tensor model.map_layer0.bias is torch.int64; allowed: floating-point",
        ),
        (
            lambda meta, state: state["_modules"].update(again=state["_modules"]["model"]),
            "is there twice or lies too deep",
        ),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(tmp_path, change, message):
    path = write(tmp_path / "net.pkl", broken(change))
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        engine.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_is_not_asked_for_what_the_file_says(tmp_path):
    path = write(tmp_path / "net.pkl", snapshot(denoiser()))
    with pytest.raises(ValueError, match="config has img_resolution; allowed: nothing"):
        engine.load(path, config={"img_resolution": 8})


def test_other_pickles(tmp_path):
    with pytest.raises(ValueError, match="the pickle holds no network under 'ema'"):
        engine.load(write(tmp_path / "other.pkl", {"G_ema": Record("Generator", {})}))
