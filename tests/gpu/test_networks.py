"""The networks' operations and the prepared networks on a CUDA device, by the yardstick of plain torch there."""

import copy

import pytest
import torch

import engine
from engine.networks import ops, triton_ops
from engine.networks.precision import cast_network
from tests.cpu.test_prepared_network import KINDS, denoiser_of, inputs
from tests.group_norm_cases import case, resampling

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def there(value):
    if isinstance(value, tuple):
        return type(value)(*map(there, value)) if hasattr(value, "_fields") else tuple(map(there, value))
    return value.to("cuda") if isinstance(value, torch.Tensor) else value


@pytest.fixture(params=[1, 10**6], ids=["slab", "split"])
def group_norm(request, monkeypatch):
    monkeypatch.setattr(triton_ops, "_processors", lambda device: request.param)
    return triton_ops.group_norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 128, 32, 32), (3, 256, 16, 16), (1, 192, 8, 8), (2, 24, 5, 7)], ids=str)
@pytest.mark.parametrize("taps", [None, (1, 1), (1, 3, 3, 1)], ids=str)
@pytest.mark.parametrize("given", [(), ("add", "keep"), ("scale_shift", "keep")], ids=str)
def test_group_norm(group_norm, dtype, shape, taps, given):
    arguments, each = case(shape, dtype)
    options = {name: each[name] for name in given}
    if taps is not None:
        options["resample"] = resampling(taps, up=shape[0] == 1)
    exact = ops.group_norm(
        *[a.double() if isinstance(a, torch.Tensor) else a for a in arguments], silu=True,
        **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items() if k != "scale_shift"},
        **({"scale_shift": tuple(t.double() for t in each["scale_shift"])} if "scale_shift" in given else {}),
    )  # fmt: skip
    arguments = tuple(map(there, arguments))
    options = {name: there(value) for name, value in options.items()}
    plain, got = (f(*arguments, silu=True, **options) for f in (ops.group_norm, group_norm))
    for mine, torchs, truth in zip(got, plain, exact, strict=True):
        error, allowed = ((t.cpu().double() - truth).abs() for t in (mine, torchs))
        least = torch.finfo(dtype).eps * truth.abs().max()
        assert error.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt() + least
        assert error.max() <= 1.5 * allowed.max() + least


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_prepared_networks(kind, dtype):
    denoiser = denoiser_of(kind)
    x, c_noise, labels = inputs(dtype)
    exact = copy.deepcopy(denoiser.model).double()(x.double(), c_noise.double(), labels.double())
    plain = cast_network(copy.deepcopy(denoiser.model).to("cuda"), dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = plain(*(t.to("cuda") for t in (x, c_noise, labels))).cpu().double() - exact
    prepared = engine.Engine(denoiser, dtype=dtype, device="cuda").denoiser.model
    assert {m.ops.name for m in prepared.modules() if hasattr(m, "ops")} == {"triton"}
    error = prepared(*(t.to("cuda") for t in (x, c_noise, labels))).cpu().double() - exact
    assert error.square().mean() <= (1.5**2) * plain.square().mean()
    assert error.abs().max() <= 1.5 * plain.abs().max()


@torch.no_grad()
def test_the_same_call_gives_the_same_bits():
    prepared = engine.Engine(denoiser_of("ddpmpp"), dtype=torch.bfloat16, device="cuda").denoiser.model
    arguments = [t.to("cuda") for t in inputs(torch.bfloat16)]
    first = prepared(*arguments)
    assert all(torch.equal(prepared(*arguments), first) for _ in range(5))
