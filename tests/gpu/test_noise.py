"""The standalone normals of every CUDA backend against the NumPy reference, to the bit."""

import pytest
import torch

from engine import noise
from engine.verify.normals import DRAWS, PHILOX_KNOWN, SEEDS
from tests.cases import assert_same_bits

backends = pytest.mark.parametrize("backend", ["cuda", "triton"])


@backends
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (255,), (511,), (512,), (513,), (1, 32, 32), (3, 7, 5), (3, 256, 256)], ids=str
)
@pytest.mark.parametrize("draw", DRAWS)
def test_normal(backend, draw, shape):
    got = noise.normal(SEEDS, draw, shape, backend=backend, device="cuda")
    assert got.device.type == "cuda"
    assert_same_bits(got.cpu(), noise.normal_ref(SEEDS, draw, shape), "normal")


@backends
def test_a_draw_for_each_seed(backend):
    draws = [0, 2**32, 7, *range(len(SEEDS) - 3)]
    got = noise.normal(SEEDS, draws, (3, 5), backend=backend, device="cuda")
    assert_same_bits(got.cpu(), noise.normal_ref(SEEDS, draws, (3, 5)), "normal")
    assert noise.normal([], 0, (3,), backend=backend, device="cuda").shape == (0, 3)


@backends
def test_many_normals(backend):
    """2^23 of them: every polynomial branch, quadrant and rounding of the conversions many times."""
    got = noise.normal([5], 9, (1 << 23,), backend=backend, device="cuda")
    assert_same_bits(got.cpu(), noise.normal([5], 9, (1 << 23,), device="cpu"), "normal")


def test_a_failed_launch_is_an_error_with_the_reason():
    from engine import _native

    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        _native.normal_cuda(8, 8, 8, 1, 1, device=10_000, stream=0)
    assert_same_bits(noise.normal([1], 0, (4,), device="cuda").cpu(), noise.normal_ref([1], 0, (4,)), "afterwards")


class TestTritonParts:
    """What is inside the Triton kernel, on the device; the same parts as in the interpreter's tests."""

    @pytest.fixture
    def interpreted(self):
        pytest.importorskip("triton", reason="Triton is not installed")
        from tests.unit import interpreted

        return interpreted

    def test_philox_known_answers(self, interpreted):
        for words, result in PHILOX_KNOWN:
            assert interpreted.philox_words(torch.tensor(words, device="cuda")).tolist() == list(result)

    def test_box_muller_at_the_edges(self, interpreted):
        a, b = (words.contiguous() for words in interpreted.edge_words("cuda"))
        expected = torch.stack(noise.box_muller_ref(a.cpu(), b.cpu()), -1)
        assert_same_bits(interpreted.pairs(a, b).cpu(), expected, "pairs")
