"""What the networks may be built from: their arguments that are numbers, or lists of them, and what is allowed."""

from collections.abc import Mapping
from typing import Any

from ..allowed import integer, is_integer, number, require

_COUNTS = {
    "img_resolution": 1,
    "img_channels": 1,
    "in_channels": 1,
    "out_channels": 1,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 1,
    "channel_mult_emb": 1,
    "channel_mult_noise": 1,
    "num_blocks": 0,
}
_LISTS = {"channel_mult": 1, "attn_resolutions": 0, "resample_filter": 0}
_SHARES = ("dropout", "label_dropout")


def require_sizes(given: Mapping[str, Any]) -> None:
    """Raises ValueError for the first of these arguments that is no number, or out of range; passes over all others."""
    for name, least in _COUNTS.items():
        if name in given:
            integer(name, given[name], least)
    for name, least in _LISTS.items():
        if name in given:
            value = given[name]
            listed = isinstance(value, list | tuple) and (len(value) > 0 or name == "attn_resolutions")
            whole = listed and all(is_integer(item, least) for item in value)
            require(name, value, whole, f"a list of integers from {least}")
    for name in _SHARES:
        if name in given:
            number(name, given[name], "a number from 0 to 1", lambda share: 0 <= share <= 1)
