"""What an engine may be asked for, checked before any work."""

from collections.abc import Sequence
from typing import Literal, TypedDict, TypeVar

import torch

from .allowed import is_integer
from .graphs import Mode
from .guidance import Guidance
from .plan import Sampler
from .samplers import AdaptiveSampler

NETWORK_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STATE_DTYPES = (torch.float64, torch.float32)
OnNonFinite = Literal["raise", "rerun"]
_T = TypeVar("_T")


class Options(TypedDict, total=False):
    """How an `engine.Engine` works; it says what each is."""

    sampler: Sampler | AdaptiveSampler | None
    guidance: Guidance | None
    dtype: torch.dtype | None
    state_dtype: torch.dtype
    output_dtype: torch.dtype
    backend: str
    device: torch.device | str | None
    batch_size: int | Literal["auto"] | None
    batch_invariant: bool
    buckets: Sequence[int] | None
    graph: Mode
    graph_memory: int | None
    compile: bool
    on_nonfinite: OnNonFinite


def require_one_of(name: str, value: _T, allowed: tuple[_T, ...]) -> None:
    """Raises ValueError for another value."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def require_output_dtype(output_dtype: object) -> None:
    """Raises ValueError for what is no floating dtype."""
    if not (isinstance(output_dtype, torch.dtype) and output_dtype.is_floating_point):
        raise ValueError(f"output_dtype is {output_dtype}; allowed: a floating dtype (engine.to_uint8 makes bytes)")


def checked_batch_size(batch_size: object) -> int | Literal["auto"] | None:
    """What was given, a size as Python's own int. Raises ValueError for what is neither a size, "auto" nor None."""
    if batch_size is None or batch_size == "auto":
        return batch_size
    if not is_integer(batch_size, 1):
        raise ValueError(f"batch_size is {batch_size!r}; allowed: an integer from 1, 'auto', or None")
    return int(batch_size)  # type: ignore[call-overload]


def require_sampler(sampler: object, guidance: Guidance | None, graph: str = "auto") -> None:
    """Raises ValueError for what is no sampler, and where the adaptive one cannot do what else is asked for."""
    if not isinstance(sampler, Sampler | AdaptiveSampler):
        raise ValueError(f"sampler is {sampler!r}; allowed: an engine.Sampler, such as engine.samplers.edm()")
    if isinstance(sampler, AdaptiveSampler) and guidance is not None:
        raise ValueError(f"guidance is {type(guidance).__name__}; allowed: None, with the adaptive {sampler}")
    if isinstance(sampler, AdaptiveSampler) and graph in ("loop", "step"):
        raise ValueError(f"graph is {graph!r}; allowed: 'auto', 'off', with the adaptive {sampler}")
