"""The memory of remembered evaluations, and the native programs that run in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine import _native
from engine.networks.arena import Storage, plan
from tests.helpers import small_unet


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 20)), max_size=40))
def test_no_two_storages_that_are_needed_at_once_overlap(drawn):
    storages = [Storage(nbytes, first, first + more) for nbytes, first, more in drawn]
    size = plan(storages)
    for i, a in enumerate(storages):
        assert a.offset % 64 == 0
        assert a.offset + a.nbytes <= size
        for b in storages[:i]:
            apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
            assert apart or a.last < b.first or b.last < a.first or not (a.nbytes and b.nbytes)


def test_an_arena_is_no_larger_than_what_is_needed_at_once(monkeypatch):
    sizes = []

    def planned(storages):
        storages = list(storages)
        at_once = [sum(-(-s.nbytes // 64) * 64 for s in storages if s.first <= t <= s.last) for t in range(1000)]
        sizes.append((plan(storages), max(at_once)))
        return sizes[-1][0]

    monkeypatch.setattr("engine.networks.recording.plan", planned)
    denoiser = engine.Engine(small_unet()).denoiser
    with torch.no_grad():
        for _ in range(2):
            denoiser.call_network(torch.randn(2, 1, 16, 16), torch.zeros(2), None)
    ((size, at_once),) = sizes
    assert size == at_once > 0


def test_what_follows_what_shares_its_memory():
    assert plan([Storage(100, i, i + 1) for i in range(50)]) == 256
    assert plan([]) == 0


def test_programs_refuse_what_they_cannot_run():
    program, call = _native.Program(), _native.LinearCall([0] * 5, (0, 1, 1), False)
    with pytest.raises(ValueError, match="program: the call has 5 addresses, got 4 bases"):
        program.add(call, [0] * 4)
    program.add(call, [0, 0, 0, 0, 2])
    with pytest.raises(ValueError, match="program: base 2 is asked for, got 2 bases"):
        program.run([0, 0], 0, 1)
    with pytest.raises(ValueError, match=r"program: there are 1 calls, not \[0, 2\)"):
        program.run([0, 0, 0], 0, 2)
    with pytest.raises(ValueError, match=r"program: there are 1 calls, not \[1, 0\)"):
        program.run([0, 0, 0], 1, 0)
    program.run([0, 0, 0], 0, 1)
    assert len(program) == 1
