"""The two networks that the section on zero terminal SNR trains, and the real images that it compares them with."""

from functools import cached_property

from torch import Tensor

from ..engine import Engine
from ..samplers import Sampler, ddim
from ..training import fashion_mnist
from ..training.brightness import TRAINED
from ..training.run import quick_network
from .section import Budget

IMAGES = 16_000  # of each training run: four minutes of one core
STEPS = 20


class Trained:
    """Networks by name, of `TRAINED`, and data; each is made when it is first asked for.

    A network is trained in a folder of ``budget.runs`` that names it, or is there from an earlier call.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._engines: dict[str, Engine] = {}

    def engine(self, trained: str) -> Engine:
        if trained not in self._engines:
            preset, budget = TRAINED[trained], self.budget
            out = budget.runs / f"{preset}-{IMAGES}"
            network = quick_network(preset, IMAGES, out, budget.data, budget.device)
            self._engines[trained] = budget.engine_of(network)
        return self._engines[trained]

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """The training images, [60000, 1, 32, 32] in [-1, 1], and their labels [60000]."""
        return fashion_mnist(self.budget.data)

    @property
    def settings(self) -> dict[str, int]:
        """What all points measured of these networks have in common."""
        return {"training_images": IMAGES, "steps": STEPS}

    @property
    def sampler(self) -> Sampler:
        """DDIM at trailing timesteps: those that begin at t = T, as the paper asks."""
        return ddim(STEPS, discretization="trailing")
