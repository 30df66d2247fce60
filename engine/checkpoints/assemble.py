"""A denoiser from a config and tensors, none of which is trusted: shapes are compared before memory is taken."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..allowed import integer
from ..denoiser import Denoiser
from ..networks.layers import Conv2d
from ..networks.sizes import require_sizes
from ..preconditioning import MOST_LEVELS
from .storage import StoredTensor

_LONGEST_LIST = 64
_UNFIT = (TypeError, AttributeError, ArithmeticError, LookupError, RuntimeError)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file is one ValueError that names it."""
    try:
        yield
    except (ValueError, MemoryError, RecursionError) as error:
        message = str(error) or type(error).__name__
        line = "".join(letter if letter.isprintable() else "?" for letter in message[:400])  # names are the file's
        raise ValueError(f"{path}: {line}") from None


def build(
    config: Mapping[str, Any], state: Mapping[str, Tensor | StoredTensor], *, taps: Sequence[int] | None = None
) -> Denoiser:
    """The denoiser of a config with these tensors, in float32 and eval mode.

    taps: of the resampling filters, where the file does not hold them as tensors.
    Raises ValueError for a config that cannot be built or evaluated, and names the first tensor that is missing,
    unexpected or of another shape.
    """
    _check_config(config, len(state))
    try:
        with torch.device("meta"):
            denoiser = Denoiser.from_config(config)
    except _UNFIT as error:
        raise ValueError(f"no network can be built from its config: {_first_line(error)}") from None
    if taps is not None:
        state = {**state, **_filters(denoiser, taps)}
    expected = {key: tuple(value.shape) for key, value in denoiser.state_dict().items()}
    given = {key: _shape(value) for key, value in state.items()}
    if given != expected:
        raise ValueError(f"tensors do not fit the config: {_difference(expected, given)}")
    _check_evaluation(denoiser.eval())
    denoiser.load_state_dict({key: _float32(key, value) for key, value in state.items()}, assign=True)
    return denoiser


def _filters(denoiser: Denoiser, taps: Sequence[int]) -> dict[str, Tensor]:
    filter = Conv2d(1, 1, 0, up=True, resample_filter=taps).resample_filter
    assert filter is not None
    return {key: filter.clone() for key in denoiser.state_dict() if key.endswith(".resample_filter")}


def _check_config(config: Mapping[str, Any], tensors: int) -> None:
    """A config is flat, and it does not ask for more layers than there are tensors, nor for long tables."""
    for name, value in config.items():
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > _LONGEST_LIST or not all(isinstance(item, str | int | float | None) for item in items):
            raise ValueError(f"{name} in its config is not a number, a string or a short list of them")
        if any(isinstance(item, int) and item < 0 for item in items):
            raise ValueError(f"{name} in its config is negative")
    require_sizes(config)
    for name in ("T", "M"):
        integer(name, config.get(name, 1), 1, MOST_LEVELS)
    layers = max(config.get("num_blocks", 1), 1) * len(config.get("channel_mult", [1]))
    if layers > tensors:
        raise ValueError(f"num_blocks and channel_mult in its config do not fit {tensors} tensors")


def _check_evaluation(denoiser: Denoiser) -> None:
    """One evaluation without data: sizes that cannot be halved are found here and not when images are drawn."""
    x = torch.empty(1, *denoiser.img_shape, device="meta")
    labels = torch.empty(1, denoiser.label_dim, device="meta") if denoiser.label_dim else None
    try:
        with torch.no_grad():
            denoiser.call_network(x, torch.empty(1, device="meta"), labels)
    except (ValueError, *_UNFIT) as error:
        shape = list(denoiser.img_shape)
        raise ValueError(f"its network cannot be evaluated for images of {shape}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _shape(value: Tensor | StoredTensor) -> tuple[int, ...]:
    return value.size if isinstance(value, StoredTensor) else tuple(value.shape)


def _difference(expected: Mapping[str, object], given: Mapping[str, object]) -> str:
    wrong = sorted(key for key in {*expected, *given} if expected.get(key) != given.get(key))
    found, wanted = given.get(wrong[0], "missing"), expected.get(wrong[0], "unexpected")
    return f"first of {len(wrong)}: {wrong[0]} is {found}, the config has it {wanted}"


def _float32(key: str, value: Tensor | StoredTensor) -> Tensor:
    tensor = value.tensor() if isinstance(value, StoredTensor) else value
    if not tensor.is_floating_point():
        raise ValueError(f"tensor {key} is {tensor.dtype}; allowed: floating-point numbers")
    return tensor.to(torch.float32)
