"""What the readers of original checkpoints have in common: a config inferred and asked for, tensors renamed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .storage import StoredTensor

Tensors = dict[str, Tensor | StoredTensor]


@dataclass(frozen=True)
class Translation:
    """A published config, tensors under our names, and the taps of the resampling filter."""

    config: dict[str, Any]
    state: Tensors
    taps: Sequence[int]


class Original(ABC):
    """A network of another code base, by its tensors."""

    asked: ClassVar[Mapping[str, str]]  # what no tensor says, and what is allowed for it

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the user says of it, if that is all there is to say."""
        missing = [f"{name} ({allowed})" for name, allowed in self.asked.items() if name not in given]
        if missing:
            raise ValueError(f"the file does not say all of its network; give in config: {', '.join(missing)}")
        resolution = given["img_resolution"]
        if not isinstance(resolution, int) or resolution < 1:
            raise ValueError(f"img_resolution is {resolution!r}; allowed: an integer from 1")
        return dict(given)

    @abstractmethod
    def translate(self, given: dict[str, Any]) -> Translation:
        """The network under our names. Raises ValueError where it is not one of ours."""


def merge(inferred: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both together, if they agree."""
    for name, value in inferred.items():
        if name in given and given[name] != value:
            raise ValueError(f"config has {name} {given[name]!r}; the tensors say {value!r}")
    return {**given, **inferred}


def state_dict_of(tensors: object) -> dict[str, StoredTensor] | None:
    """A state dict, or None if this is none; DataParallel's prefix is taken off."""
    if not isinstance(tensors, dict) or not tensors:
        return None
    if not all(isinstance(key, str) and isinstance(value, StoredTensor) for key, value in tensors.items()):
        return None
    return {key.removeprefix("module."): value for key, value in tensors.items()}
