"""Who samples: this engine in its modes, and the same network as others use it. Each draws bytes on the host."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

import engine
from bench.user_loops import CannotRun, UserLoop, diffusers_loop, k_diffusion_loop, plain
from engine import Denoiser
from engine.networks.precision import cast_network

Draw = Callable[[], object]


@dataclass(frozen=True)
class Situation:
    """What is drawn: ``batch`` images of a network by ``steps`` of Heun, 2 steps - 1 evaluations, in ``dtype``."""

    network: str
    denoiser: Denoiser
    batch: int
    dtype: torch.dtype
    steps: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.network} {self.half} batch {self.batch}"

    @property
    def nfe(self) -> int:
        return 2 * self.steps - 1

    @property
    def half(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def classes(self) -> list[int] | None:
        """The images' classes in turn; None for a network without."""
        count = self.denoiser.label_dim
        return [image % count for image in range(self.batch)] if count else None


@dataclass(frozen=True)
class Variant:
    """prepare() makes what draws a batch, after whatever has to be done once; raises `CannotRun` with the reason."""

    name: str
    prepare: Callable[[], "Prepared"]
    compiles: bool = False


@dataclass(frozen=True)
class Prepared:
    """draw: the whole batch. try_out: as much of it as makes all that is made only once; share: its part of draw's
    evaluations. made: the engine whose draw it is, if any."""

    draw: Draw
    try_out: Draw
    share: float
    made: engine.Engine | None = None


def variants(situation: Situation, compiled: bool) -> list[Variant]:
    """All that are compared; the engine first. compiled: also torch.compile, which takes minutes."""
    half, cuda = situation.half, situation.device.type == "cuda"
    listed = [Variant("engine", lambda: by_engine(situation, "auto"))]
    if cuda:
        listed.append(Variant("engine, step graph", lambda: by_engine(situation, "step")))
        listed.append(Variant("engine, no graph", lambda: by_engine(situation, "off")))
    usual, lean = (lambda: _plain_network(situation)), (lambda: _half_network(situation))
    listed += [
        Variant("eager float32", lambda: by_loop(situation, plain, usual())),
        Variant(f"eager {half}, channels_last", lambda: by_loop(situation, plain, lean())),
        Variant("k-diffusion", lambda: by_loop(situation, k_diffusion_loop(), lean())),
        Variant("diffusers", lambda: by_loop(situation, diffusers_loop(), lean())),
    ]
    modes = ["reduce-overhead", "max-autotune"] if cuda else ["default"]
    for mode in modes if compiled else []:
        name = f"compile {mode}" if cuda else "compile"
        listed.append(Variant(name, lambda mode=mode: by_compile(situation, mode), compiles=True))  # type: ignore[misc]
    return listed


def by_engine(situation: Situation, graph: Any) -> Prepared:
    """`Engine.stream_uint8` of one batch; other seeds in each call. Its first batches warm up and capture."""
    made = engine.Engine(
        situation.denoiser,
        sampler=engine.samplers.edm(steps=situation.steps),
        dtype=situation.dtype,
        device=situation.device,
        batch_size=situation.batch,
        graph=graph,
    )
    seeds = _seeds(situation.batch)

    def draw() -> None:
        for _, images in made.stream_uint8(seeds=next(seeds), class_labels=situation.classes):
            assert images.device.type == "cpu"

    return Prepared(draw, draw, 1.0, made)


def by_loop(situation: Situation, loop: UserLoop, net: Denoiser) -> Prepared:
    """A user's loop around a plain network, noise of one generator on the device. Two steps try everything out."""
    device, dim = situation.device, situation.denoiser.label_dim
    generator = torch.Generator(device).manual_seed(0)
    labels = torch.nn.functional.one_hot(torch.tensor(situation.classes), dim).float().to(device) if dim else None
    shape = (situation.batch, *situation.denoiser.img_shape)
    layout = torch.channels_last if _is_channels_last(net) and len(shape) == 4 else torch.contiguous_format

    def draw(steps: int) -> Tensor:
        latents = torch.randn(shape, generator=generator, device=device).contiguous(memory_format=layout)
        return loop(net, latents, labels, steps)

    short = min(2, situation.steps)
    return Prepared(lambda: draw(situation.steps), lambda: draw(short), (2 * short - 1) / situation.nfe)


def by_compile(situation: Situation, mode: str) -> Prepared:
    """The plain loop around torch.compile of the half-precision network."""
    torch._inductor.config.freezing = situation.device.type == "cpu"
    net = _half_network(situation)
    net.model = torch.compile(net.model, mode=mode, dynamic=False)  # type: ignore[assignment]
    return by_loop(situation, plain, net)


def _plain_network(situation: Situation) -> Denoiser:
    return copy.deepcopy(situation.denoiser).to(situation.device).eval()


def _half_network(situation: Situation) -> Denoiser:
    made = _plain_network(situation)
    cast_network(made.model, situation.dtype)
    return made


def _is_channels_last(net: Denoiser) -> bool:
    weights = [p for p in net.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    return bool(weights) and weights[0].is_contiguous(memory_format=torch.channels_last)


def _seeds(batch: int) -> Iterator[range]:
    first = 0
    while True:
        yield range(first, first + batch)
        first += batch


__all__ = ["CannotRun", "Prepared", "Situation", "Variant", "variants"]
