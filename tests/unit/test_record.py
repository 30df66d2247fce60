"""What settings.json says of a value: the same in every process, and another for whatever draws other images."""

import json
import os
import subprocess
import sys
from collections import deque
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine import record
from engine.adapters import from_k_diffusion
from engine.networks.ideal import GaussianNetwork
from tests.helpers import wavy


def said(value):
    return json.loads(record.encode({"it": value}))["it"]


class Scaled:
    """A callable that is no function."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x, sigma):
        return self.by * x


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by


class Plain(nn.Module):
    """Without parameters; its attributes say all."""

    def __init__(self, **given):
        super().__init__()
        for name, value in given.items():
            setattr(self, name, value)

    def forward(self, x, c_noise):
        return x


class Other(Plain):
    pass


def classes(factor):
    """Of one name, with other bodies."""

    class Network(nn.Module):
        gain = factor

        def forward(self, x, c_noise):
            return x

    class Worded(nn.Module):
        if factor == 1:

            def forward(self, x, c_noise):
                return x
        else:

            def forward(self, x, c_noise):
                return 2 * x

    class Proper(nn.Module):
        if factor == 1:
            level = property(lambda self: 1)
            still = staticmethod(lambda: 1)
        else:
            level = property(lambda self: 1)
            still = staticmethod(lambda: 2)

    return Network(), Worded(), Proper()


def buffered(value):
    network = Plain()
    network.register_buffer("scale", torch.tensor(value), persistent=False)
    return network


def hooked(value):
    network = Plain()
    network.register_forward_hook(lambda module, inputs, output, by=value: by * output)
    return network


def parametrised(value):
    network = Plain()
    network.gain = nn.Parameter(torch.tensor(float(value)))
    return network


def array(value):
    numbers = np.ones(5000, np.float32)
    numbers[2500] = value
    return numbers


UNLIKE = {
    "array": array,
    "tensor": lambda value: torch.from_numpy(array(value)),
    "shape": lambda value: np.ones((value, 6 // value)),
    "dtype": lambda value: np.zeros(6, np.float32 if value == 1 else np.int32),
    "objects": lambda value: np.array([{value}, "a"], dtype=object),
    "partial": lambda value: partial(max, value),
    "keyword": lambda value: partial(max, key=value),
    "function": lambda value: lambda x, by=value: by * x,
    "closure": lambda value: lambda x: value * x,
    "cached": lambda value: lru_cache(lambda x: value * x),
    "vmap": lambda value: torch.vmap(lambda x: value * x),
    "callable": Scaled,
    "method": lambda value: Scaled(value).__call__,
    "slots": Slotted,
    "namespace": lambda value: SimpleNamespace(by=value),
    "distribution": lambda value: torch.distributions.Normal(0.0, float(value)),
    "set": lambda value: {"a", value},
    "deque": lambda value: deque([value]),
    "class": lambda value: (Plain if value == 1 else Other)(),
    "constant of a class": lambda value: classes(value)[0],
    "function of a class": lambda value: classes(value)[1],
    "static function": lambda value: classes(value)[2],
    "number": lambda value: Plain(std=float(value)),
    "string": lambda value: Plain(mode=str(value)),
    "tuple": lambda value: Plain(sizes=(1, (value,))),
    "unregistered tensor": lambda value: Plain(scale=[torch.tensor(value)]),
    "unregistered module": lambda value: Plain(inner=[Plain(std=value)]),
    "submodule": lambda value: nn.Sequential(Plain(), Plain(std=value)),
    "activation": lambda value: Plain(act=torch.tanh if value == 1 else torch.sin),
    "unsaved buffer": buffered,
    "hook": hooked,
    "parameter": parametrised,
    "denoiser": lambda value: engine.Denoiser(
        Plain(), engine.preconditioning.EDM(), img_shape=(1, 4, 4 * value), label_dim=0
    ),
    "wrapped": lambda value: from_k_diffusion(
        lambda x, sigma: value * x, img_shape=(1, 4, 4), sigma_min=0.1, sigma_max=10
    ),
    "closed form": lambda value: GaussianNetwork(torch.zeros(2), value),
}


@pytest.mark.parametrize("make", UNLIKE.values(), ids=UNLIKE)
def test_what_draws_other_images_is_another_record(make):
    assert said(make(1)) == said(make(1))
    assert said(make(1)) != said(make(2))


def test_numbers_of_numpy_are_numbers():
    given = [np.int64(3), np.float32(0.5), np.float64(np.inf), np.bool_(True), np.str_("a")]
    assert said(given) == said([3, 0.5, np.inf, True, "a"]) == [3, 0.5, "inf", True, "a"]


def test_paths_and_dtypes_are_their_names():
    assert said([Path("a/b"), torch.float16, np.dtype("int8"), ..., 1j]) == [
        "a/b", "torch.float16", "int8", "Ellipsis", "1j",
    ]  # fmt: skip


def test_what_changes_no_image_is_not_recorded():
    denoiser = wavy(engine.preconditioning.EDM())
    before = said(denoiser)
    denoiser.train()
    denoiser.config, denoiser.class_names = {"model": "other"}, ("a", "b")
    handle = denoiser.register_forward_hook(lambda *_: None)
    handle.remove()
    assert said(denoiser) == before
    assert said(Plain(device=torch.device("cuda:1"))) == said(Plain(device=torch.device("cuda:0")))
    handles = [nn.Linear(1, 1).register_forward_hook(print) for _ in range(2)]  # numbered by the process
    assert said(Plain(handle=handles[0])) == said(Plain(handle=handles[1]))


def test_what_holds_itself_ends():
    network = Plain()
    network.all, network.own = [network], network.forward
    assert said(network) == said(network)
    scaled = Scaled(1)
    scaled.by = {"me": scaled, "again": [scaled.__call__] * 3}
    assert said(scaled) == said(scaled)

    def factorial(n):
        return n * factorial(n - 1) if n else later

    before = said(factorial)
    later = 1
    assert before != said(factorial)
    assert factorial(3) == 6


def test_a_function_that_has_run_is_the_same():
    """The interpreter rewrites what runs often."""

    def total(count):
        return sum(i * 2 for i in range(count) if i in {1, 2, 3})

    before = said(total)
    for _ in range(200):
        total(50)
    assert said(total) == before


PROGRAM = """
import torch
from functools import partial
from torch import nn
from engine import record
from engine.adapters import from_diffusers, from_k_diffusion
from engine.guidance import gradient_of
import diffusers
class Scaled:
    names = ("a", "b")
    def __init__(self):
        self.me, self.words, self.lock = self, {"x", "y", "z"}, __import__("threading").Lock()
        self.log = __import__("logging").getLogger("scaled")
    def __call__(self, x, sigma):
        return x if "q" in {"a", "b", "q"} else 0 * x
inside = lambda s: s in {"a", "b", "c"} or s in ({"d", "e"}, {"f", "g"})
torch.manual_seed(0)
unet = diffusers.UNet2DModel(8, 1, 1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                             block_out_channels=(32,), layers_per_block=1)
wrapped = partial(from_k_diffusion, img_shape=(1, 4, 4), sigma_min=0.1, sigma_max=10.0)
given = {
    "set": inside, "words": {"a", "b", "c"}, "partial": partial(inside, "a"), "object": Scaled(),
    "method": Scaled().__call__, "wrapped": wrapped(Scaled()), "builtin": torch.tanh,
    "compiled function": wrapped(torch.compile(inside)), "compiled": torch.compile(nn.Identity()),
    "unet": from_diffusers(unet, diffusers.DDPMScheduler()), "gradient": gradient_of(nn.Linear(2, 2)),
    "lstm": nn.utils.parametrizations.weight_norm(nn.LSTM(2, 2), "weight_hh_l0"),
}
print(record.encode(given).decode())
"""


def test_it_is_the_same_in_every_process():
    def run(seed):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
        return subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=True, **options).stdout

    first, second = json.loads(run(1)), json.loads(run(2))
    assert len(first) == 12 + 3
    assert first == second
    assert " at 0x" not in json.dumps(first)
