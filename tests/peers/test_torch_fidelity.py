"""Our quality measures against torch-fidelity's formulas, on the same features."""

import importlib.util
import math
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from engine.metrics import ClassSums, Statistics, frechet_distance, precision_recall
from engine.metrics.intervals import BLOCKS, blocks_of
from tests.unit.test_metrics import features

if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip("needs torch-fidelity (make test)", allow_module_level=True)


def _formulas() -> list[ModuleType]:
    """torch_fidelity's metric modules; the package also imports torchvision, for images that no formula needs."""
    unused = ["torchvision", *(f"torchvision.{part}" for part in ("datasets", "models", "transforms"))]
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for module in [*unused, "torchvision.transforms.functional"]:
                patch.setitem(sys.modules, module, MagicMock())
        return [importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "isc", "prc")]


fid, isc, prc = _formulas()


@pytest.mark.parametrize(("real", "generated"), [(500, 400), (40, 1000)])
def test_frechet_distance(real, generated):
    a, b = features(real, 1, dim=24).double(), features(generated, 2, 0.5, dim=24).double()
    expected = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (a, b)), False)
    got = frechet_distance(Statistics.of("", a), Statistics.of("", b))
    assert math.isclose(got, expected[fid.KEY_METRIC_FID], rel_tol=1e-8)


def test_inception_score():
    logits = 3 * torch.randn(503, 11, generator=torch.Generator().manual_seed(0))
    expected = isc.isc_features_to_metric(logits, splits=BLOCKS, shuffle=False)
    sizes = blocks_of(503).bincount().tolist()
    scores = torch.tensor([ClassSums.of(p).score for p in logits.double().softmax(1).split(sizes)], dtype=torch.float64)
    assert math.isclose(scores.mean(), expected[isc.KEY_METRIC_ISC_MEAN], rel_tol=1e-12)
    assert math.isclose(scores.std(correction=0), expected[isc.KEY_METRIC_ISC_STD], rel_tol=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall(k):
    real, generated = (features(n, seed, shift, dim=6).double() for n, seed, shift in [(300, 1, 0.0), (250, 2, 2.0)])
    expected = prc.prc_features_to_metric(generated, real, prc_neighborhood=k, save_cpu_ram=False, verbose=False)
    got = precision_recall(real, generated, k)
    assert 0.05 < got.recall < 0.95
    assert math.isclose(got.precision, expected[prc.KEY_METRIC_PRECISION], rel_tol=1e-6)
    assert math.isclose(got.recall, expected[prc.KEY_METRIC_RECALL], rel_tol=1e-6)
