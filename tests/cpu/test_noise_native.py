"""The compiled noise against the reference, to the bit, for every instruction set that runs here."""

import threading

import numpy as np
import pytest
import torch

from engine import _native
from engine.noise import box_muller_ref, normal, normal_ref, philox_ref

SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 0xDEADBEEFCAFEF00D, 2**64 - 1]
DRAWS = [0, 1, 2**32 - 1, 2**32, 2**63 - 1]
SHAPES = [(), (1,), (3,), (4,), (255,), (256,), (257,), (1, 32, 32), (3, 7, 5)]
ISAS = _native.normal_isas()


def native(seeds, draws, elements, threads=1, isa="auto", first_quad=0):
    key, counter = np.array(seeds, dtype=np.uint64), np.array(draws, dtype=np.uint64)
    # NaN-filled with a guard behind: an element not written, or one written too many, shows.
    out = np.full(len(seeds) * elements + 8, np.nan, dtype=np.float32)
    addresses = key.ctypes.data, counter.ctypes.data, out.ctypes.data
    _native.normal(*addresses, len(seeds), elements, threads=threads, isa=isa, first_quad=first_quad)
    assert np.isnan(out[-8:]).all()
    return torch.from_numpy(out[:-8]).reshape(len(seeds), elements)


def bits(x):
    return x.view(torch.int32)


def test_instruction_sets_are_listed_fastest_first():
    assert ISAS[-1] == "generic"
    assert [i for i in ("avx512", "avx2", "generic") if i in ISAS] == ISAS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", DRAWS)
def test_normal_equals_reference(draw, shape):
    result = normal(SEEDS, draw, shape, backend="cpu")
    assert result.dtype == torch.float32
    assert result.shape == (len(SEEDS), *shape)
    assert torch.equal(bits(result), bits(normal_ref(SEEDS, draw, shape, xp=torch)))
    assert torch.equal(bits(result), bits(torch.from_numpy(normal_ref(SEEDS, draw, shape, xp=np))))
    assert torch.equal(bits(result), bits(normal(SEEDS, draw, shape)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("elements", [1, 255, 1000, 50_003])
def test_every_isa_and_thread_count(isa, threads, elements):
    draws = [3 * i + (i << 40) for i in range(len(SEEDS))]
    expected = normal_ref(SEEDS, draws, (elements,), xp=torch)
    assert torch.equal(bits(native(SEEDS, draws, elements, threads, isa)), bits(expected))


@pytest.mark.parametrize("isa", ISAS)
def test_many_values(isa):
    """2^23 normals: every polynomial branch, quadrant and rounding of the conversions many times."""
    expected = native([5], [9], 1 << 23, 1, "generic")
    assert torch.equal(bits(native([5], [9], 1 << 23, 2, isa)), bits(expected))
    # The reference is slower: a window of it, through the same counters.
    assert torch.equal(bits(expected[:, : 1 << 21]), bits(normal_ref([5], 9, (1 << 21,), xp=torch)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("first_quad", [1, 63, 2**32 - 70, 2**32 - 5, 2**32, 2**33 + 1])
def test_windows_and_the_carry_of_the_counter(isa, first_quad):
    """Counters past 2^32, which no sample of a sane size reaches, in the middle of a block."""
    q = torch.arange(first_quad, first_quad + 100)
    key, draw = (torch.tensor(11), torch.tensor(0)), (torch.tensor(3), torch.tensor(0))
    r0, r1, r2, r3 = philox_ref(key, (q & 0xFFFFFFFF, q >> 32, *draw))
    expected = torch.stack((*box_muller_ref(r0, r1), *box_muller_ref(r2, r3)), -1).reshape(1, -1)
    assert torch.equal(bits(native([11], [3], 400, 1, isa, first_quad)), bits(expected))


def test_a_sample_does_not_depend_on_its_batch():
    batch = normal(SEEDS, 6, (3, 7, 5))
    for i, seed in enumerate(SEEDS):
        assert torch.equal(batch[i], normal([seed], 6, (3, 7, 5))[0])


def test_calls_from_several_threads():
    expected, results = native(SEEDS, [1] * len(SEEDS), 30_000), {}

    def work(i):
        results[i] = native(SEEDS, [1] * len(SEEDS), 30_000, threads=2)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(results[i], expected) for i in range(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": -1}, r"^samples must be in \[0, \d+\], got -1$"),
        ({"elements": -1}, r"^elements must be in \[0, \d+\], got -1$"),
        ({"samples": 2**40, "elements": 2**40}, r"^elements must be in \[0, \d+\], got 1099511627776$"),
        ({"first_quad": -1}, r"^first_quad must be in \[0, \d+\], got -1$"),
        ({"threads": 0}, r"^threads must be in \[1, 1024\], got 0$"),
        ({"isa": "sse9"}, r'^isa must be one of "auto",.* "generic" on this machine, got "sse9"$'),
        ({"seeds_ptr": 0}, r"^seeds must be a non-null address aligned to 8 bytes, got 0$"),
        ({"draws_ptr": 4}, r"^draws must be a non-null address aligned to 8 bytes, got 4$"),
        ({"out_ptr": 2}, r"^out must be a non-null address aligned to 4 bytes, got 2$"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"seeds_ptr": 8, "draws_ptr": 8, "out_ptr": 8, "samples": 1, "elements": 1, **change}
    with pytest.raises(ValueError, match=message):
        _native.normal(**arguments)


def test_nothing_to_do_needs_no_addresses():
    _native.normal(0, 0, 0, 0, 5)
    _native.normal(0, 0, 0, 5, 0)
