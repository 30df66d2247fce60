"""Files of torch.save: what `torch.load(weights_only=True)` reads of them, and no more."""

import io

import pytest
import torch
from torch import nn

from engine.checkpoints.storage import StoredTensor
from engine.checkpoints.torch_file import read_torch


def tensors(value: object) -> object:
    """Stored tensors, in containers, as tensors."""
    if isinstance(value, StoredTensor):
        return value.tensor()
    if isinstance(value, dict):
        return {key: tensors(each) for key, each in value.items()}
    return type(value)(map(tensors, value)) if isinstance(value, list | tuple | set) else value


def equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


BASE = torch.arange(24.0).reshape(4, 6)
network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
SAVED = {
    "state dict": network.state_dict(),
    "parameters": list(network.parameters()),
    "optimizer": torch.optim.Adam(network.parameters(), betas=(0.5, 0.9)).state_dict(),
    "views of one storage": [BASE[1:3, 2:], BASE[0], BASE.t()[:2, :1]],
    "dtypes": [torch.ones(3, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)],
    "without elements or dimensions": [torch.ones(0, 3), torch.tensor(2.5)],
    "values": {"a": (1, -2.5, None, True), "b": [2**80, "text"], "c": torch.Size([1, 2]), 4: {"set"}, "d": b"bytes"},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", SAVED)
def test_both_read_the_same(name, legacy):
    data = io.BytesIO()
    torch.save(SAVED[name], data, _use_new_zipfile_serialization=not legacy)
    data.seek(0)
    assert equal(torch.load(data, weights_only=True), tensors(read_torch(data.getvalue())))


def test_tensors_own_their_memory():
    data = io.BytesIO()
    torch.save([BASE, BASE[:1]], data)
    first, second = (stored.tensor() for stored in read_torch(data.getvalue()))
    first.zero_()
    assert torch.equal(second, BASE[:1])


def test_another_byte_order_is_refused():
    data = io.BytesIO()
    torch.save(BASE, data, _use_new_zipfile_serialization=False)
    assert data.getvalue().count(b"little_endianq\x02\x88") == 1
    with pytest.raises(ValueError, match="not written on a little-endian machine"):
        read_torch(data.getvalue().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
