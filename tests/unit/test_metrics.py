"""Quality measures against their formulas written plainly with NumPy and SciPy, and streamed against at once."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine.metrics import (
    ClassSums,
    FeatureExtractor,
    Quality,
    Statistics,
    classifier_features,
    first_features,
    frechet_distance,
    inception_features,
    measure,
    precision_recall,
    real_images,
    reference_statistics,
)
from engine.metrics.intervals import BLOCKS, blocks_of, jackknife, means_without
from engine.metrics.quality import share
from engine.metrics.reference import DATA_SETS
from engine.training.data import FASHION_MNIST

DIM = 12
data_set = pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is missing")


def features(count, seed=0, shift=0.0, dim=DIM):
    """Correlated, of unequal sizes, and not centred."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) * torch.linspace(0.1, 3, dim)
    return torch.randn(count, dim, generator=generator) @ mixing + 5 + shift


def of(values):
    return Statistics.of("test", values)


def test_statistics_are_those_of_numpy_however_they_are_cut():
    values = features(301) + 1e4  # far from zero, where a sum of squares would cancel
    streamed = Statistics.empty("test", DIM)
    for chunk in values.split([1, 99, 200, 1]):
        streamed += of(chunk)
    assert streamed.count == 301
    wide = values.double().numpy()
    for statistics in (streamed, of(values), of(values[:50]) + of(values[50:])):
        np.testing.assert_allclose(statistics.mean, wide.mean(0), rtol=1e-13)
        np.testing.assert_allclose(statistics.covariance, np.cov(wide, rowvar=False), rtol=1e-9, atol=1e-10)


def test_statistics_are_kept_in_files(tmp_path):
    statistics = of(features(40))
    statistics.save(tmp_path / "a.safetensors", {"data": "x"})
    loaded = Statistics.load(tmp_path / "a.safetensors")
    assert (loaded.extractor, loaded.count) == ("test", 40)
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.allclose(loaded.scatter, statistics.scatter, rtol=1e-15)
    with pytest.raises(ValueError, match=r"format 'edm-engine 1'; allowed: 'edm-engine statistics 1'"):
        Statistics.load(engine.checkpoints._WEIGHTS / "fashion-mnist.safetensors")
    (tmp_path / "b").write_text("no tensors")
    with pytest.raises(ValueError, match="b is not a safetensors file"):
        Statistics.load(tmp_path / "b")


def test_frechet_distance_is_scipy_s():
    linalg = pytest.importorskip("scipy.linalg", reason="needs scipy (make test)")
    a, b = features(100, 1), features(80, 2, shift=1.0)
    covariances = [np.cov(v.double().numpy(), rowvar=False) for v in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = apart + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert math.isclose(frechet_distance(of(a), of(b)), expected, rel_tol=1e-9)
    assert math.isclose(frechet_distance(of(b), of(a)), expected, rel_tol=1e-9)


def test_frechet_distance_of_gaussians_has_a_closed_form():
    """Diagonal covariances: the distance is |m - n|^2 + sum (std_a - std_b)^2, singular ones too."""

    def diagonal(mean, std):
        return Statistics("test", 11, torch.tensor(mean).double(), torch.tensor(std).double().square().diag() * 10)

    a, b = diagonal([1.0, 2.0, 0.0], [1.0, 3.0, 0.0]), diagonal([0.0, 2.0, 2.0], [2.0, 0.5, 0.0])
    assert math.isclose(frechet_distance(a, b), 1 + 4 + 1 + 2.5**2, rel_tol=1e-12)
    few = of(features(5))  # fewer images than features
    assert abs(frechet_distance(few, few)) < 1e-5 * few.covariance.trace()


def test_statistics_of_different_networks_do_not_compare():
    other = Statistics.of("another", features(9))
    with pytest.raises(ValueError, match="'test' and of 'another' do not compare"):
        frechet_distance(of(features(9)), other)
    with pytest.raises(ValueError, match="do not compare"):
        of(features(9)) + other
    with pytest.raises(ValueError, match="a covariance of 1 images; allowed: from 2"):
        frechet_distance(of(features(9)), of(features(1)))


def test_inception_score_is_the_paper_s():
    p = torch.randn(50, 7, generator=torch.Generator().manual_seed(3)).mul(3).double().softmax(1)
    p[0] = torch.eye(7)[2]  # log 0 is nowhere taken
    divergence = [sum(v * math.log(v / q) for v, q in zip(row, p.mean(0), strict=True) if v) for row in p]
    expected = math.exp(sum(divergence) / 50)
    assert math.isclose(ClassSums.of(p).score, expected, rel_tol=1e-12)
    assert math.isclose((ClassSums.of(p[:13]) + ClassSums.of(p[13:])).score, expected, rel_tol=1e-12)
    assert math.isclose(ClassSums.of(torch.eye(7)).score, 7)
    assert math.isclose(ClassSums.of(torch.full([4, 7], 1 / 7)).score, 1)


def brute_force(real, generated, k):
    """Figure 2 of the paper, pair by pair."""

    def manifold(samples):
        return [(s, sorted(np.linalg.norm(s - o) for j, o in enumerate(samples) if j != i)[k - 1])
                for i, s in enumerate(samples)]  # fmt: skip

    def inside(points, balls):
        return np.mean([any(np.linalg.norm(p - centre) <= radius for centre, radius in balls) for p in points])

    real, generated = real.double().numpy(), generated.double().numpy()
    return inside(generated, manifold(real)), inside(real, manifold(generated))


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_paper_s(k, monkeypatch):
    monkeypatch.setattr("engine.metrics.manifolds._CELLS", 850)  # several chunks, the last one shorter
    real, generated = features(60, 1, dim=3), features(50, 2, shift=0.5, dim=3)
    blocks = blocks_of(50)
    found = precision_recall(real, generated, k, blocks)
    assert (found.precision, found.recall) == pytest.approx(brute_force(real, generated, k), abs=1e-12)
    assert 0.05 < found.precision < 0.98
    assert 0.05 < found.recall < 0.98
    for block, pair in enumerate(found.without):
        assert pair == pytest.approx(brute_force(real, generated[blocks != block], k), abs=1e-12)
    assert precision_recall(real, generated, k).without == ()
    with pytest.raises(ValueError, match="generated has 3 images; allowed: more than k = 3"):
        precision_recall(real, generated[:3])


def test_equal_images_are_in_each_other_s_manifold():
    values = features(30)
    values[7] = values[8] = values[9] = values[10]  # balls of no radius
    found = precision_recall(values, values.clone())
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_jackknife_is_the_interval_of_a_mean():
    stats = pytest.importorskip("scipy.stats", reason="needs scipy (make test)")
    values = np.random.default_rng(0).normal(size=BLOCKS)
    without = [(values.sum() - value) / (BLOCKS - 1) for value in values]
    low, high = stats.t.interval(0.95, BLOCKS - 1, loc=values.mean(), scale=stats.sem(values))
    assert math.isclose(jackknife(without), (high - low) / 2, rel_tol=1e-9)
    with pytest.raises(ValueError, match="without has 3 values; allowed: one a block, 10"):
        jackknife([1.0, 2.0, 3.0])


def test_blocks_are_runs_of_nearly_equal_length():
    assert blocks_of(20).tolist() == [i // 2 for i in range(20)]
    assert blocks_of(25).bincount().tolist() == [2, 3] * 5
    assert means_without(torch.arange(20.0))[:2] == [(190 - 1) / 18, (190 - 5) / 18]
    with pytest.raises(ValueError, match="values has 9 entries; allowed: one a block at least, 10"):
        means_without(torch.zeros(9))


def tiny_extractor(dim=5):
    """Features and probabilities that any image has."""
    weight = torch.randn(3 * 4 * 4, dim, generator=torch.Generator().manual_seed(5))

    def extract(images):
        found = images.float().flatten(1) / 255 @ weight
        return found, found.double().softmax(1)

    return FeatureExtractor("tiny", dim, (3, 4, 4), extract)


def images(count, seed=0, scale=0.5):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * scale


def test_quality_in_pieces_is_quality_at_once():
    extractor, drawn = tiny_extractor(), images(47)
    real, _ = extractor(images(47, 1, 0.6))
    reference = Statistics.of("tiny", real)
    whole, pieces = Quality(extractor, reference, 47), Quality(extractor, reference, 47)
    whole.add(range(47), drawn)
    order = torch.randperm(47, generator=torch.Generator().manual_seed(1))
    for at in order.split(10):
        pieces.add(at.tolist(), drawn[at])
    for a, b in zip(whole.measures(real), pieces.measures(real), strict=True):
        assert a.name == b.name
        assert (a.value, a.low, a.high) == pytest.approx(
            (b.value, b.low, b.high), rel=1e-6
        )  # float32 features, in other batches
    distance, score, precision, recall = whole.measures(real)
    found, probabilities = extractor(drawn)
    assert math.isclose(distance.value, frechet_distance(reference, Statistics.of("tiny", found)), rel_tol=1e-9)
    by_block = [ClassSums.of(p).score for p in probabilities.split(blocks_of(47).bincount().tolist())]
    assert math.isclose(score.value, sum(by_block) / BLOCKS, rel_tol=1e-12)
    pr = precision_recall(real, found)
    assert (precision.value, recall.value) == (pr.precision, pr.recall)
    for m in (distance, score, precision, recall):
        assert m.low < m.value < m.high


def test_quality_says_what_is_missing():
    extractor = tiny_extractor()
    reference = measure([images(30)], extractor)
    with pytest.raises(ValueError, match="images is 19; allowed: from 20, for intervals over 10 blocks"):
        Quality(extractor, reference, 19)
    quality = Quality(extractor, reference, 20, keep=False)
    quality.add(range(19), images(19))
    with pytest.raises(ValueError, match="19 images were added; needed: 20"):
        quality.measures(None)
    quality.add([19], images(1))
    *_, precision, recall = quality.measures(None, "no images here")
    assert (precision.value, recall.missing) == (None, "no images here")


def test_intervals_are_as_wide_as_seeds_spread():
    """Over 40 sets of 200 images, the mean width of an interval is that of the spread of the measure itself."""
    extractor = tiny_extractor()
    real, _ = extractor(images(200, 1000, 0.6))
    reference = Statistics.of("tiny", extractor(images(5000, 1001, 0.6))[0])
    found = []
    for seed in range(40):
        quality = Quality(extractor, reference, 200)
        quality.add(range(200), images(200, seed))
        found.append(quality.measures(real))
    for each in zip(*found, strict=True):
        spread = np.std([m.value for m in each], ddof=1)
        errors = np.mean([(m.high - m.low) / 2 for m in each]) / 2.262
        assert 0.7 < errors / spread < 1.7, each[0].name


def test_share_is_a_mean():
    hits = torch.arange(40) < 30
    found = share("recognised", hits)
    assert found.value == 0.75
    assert 0.4 < found.low < 0.75 < found.high == 1
    assert share("all", torch.ones(20, dtype=torch.bool)).high == 1


class Inception(nn.Module):
    """What a file of inception-2015-12-05 is called like."""

    def __init__(self):
        super().__init__()
        self.output = nn.Linear(6, 4)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        assert img.dtype == torch.uint8
        found = img.float().flatten(1)[:, :48].unflatten(1, (6, 8)).mean(2) / 255
        if return_features:
            return found
        if no_output_bias:
            return torch.nn.functional.linear(found, self.output.weight).softmax(1)
        return self.output(found).softmax(1)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_inception_is_a_torchscript_file(tmp_path):
    torch.manual_seed(0)
    model = torch.jit.script(Inception())
    torch.jit.save(model, tmp_path / "inception.pt")
    extractor = inception_features(tmp_path / "inception.pt")
    assert extractor.name.startswith("inception ")
    gray = engine.to_uint8(images(5)[:, :1])
    with torch.no_grad():
        found, probabilities = extractor(gray)
        assert torch.equal(found, model(gray.repeat(1, 3, 1, 1), return_features=True))
        expected = model(gray.repeat(1, 3, 1, 1), no_output_bias=True)
    assert torch.allclose(probabilities.float(), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"images are \[5, 2, 4, 4\]; inception .* knows \[B, 1 or 3, H, W\]"):
        extractor(gray.expand(-1, 2, -1, -1))
    (tmp_path / "text.pt").write_text("nothing")
    for path in (tmp_path / "text.pt", engine.checkpoints._WEIGHTS / "fashion-mnist.safetensors"):
        with pytest.raises(ValueError, match="is not the TorchScript file of inception-2015-12-05"):
            inception_features(path)


def test_floats_are_measured_as_the_bytes_of_their_png():
    extractor = tiny_extractor()
    drawn = images(4, scale=0.9)
    assert torch.equal(extractor(drawn)[0], extractor(engine.to_uint8(drawn))[0])
    with pytest.raises(ValueError, match=r"images are \[4, 1, 4, 4\]; tiny knows \[B, 3, 4, 4\]"):
        extractor(drawn[:, :1])


def test_a_folder_of_pngs_is_a_reference(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.metrics.reference._BATCH", 4)
    extractor, drawn = tiny_extractor(), images(9)
    for i, image in enumerate(drawn):
        engine.save_png(image, tmp_path / "pngs" / f"{i // 5}" / f"{i}.png")
    (total, expected) = (
        reference_statistics(str(tmp_path / "pngs"), extractor),
        Statistics.of("tiny", extractor(drawn)[0]),
    )
    assert total.count == 9
    assert torch.allclose(total.mean, expected.mean)
    assert torch.allclose(total.scatter, expected.scatter)
    kept = first_features(real_images(str(tmp_path / "pngs"), (3, 4, 4)), extractor, 6)
    assert torch.allclose(kept, extractor(drawn[:6])[0])
    assert next(iter(real_images(str(tmp_path / "pngs")))).shape == (4, 3, 4, 4)
    total.save(tmp_path / "tiny.safetensors")
    assert reference_statistics(str(tmp_path / "tiny.safetensors"), extractor).count == 9
    with pytest.raises(ValueError, match="holds statistics of 'tiny'; needed: of 'fashion-mnist-classifier "):
        reference_statistics(str(tmp_path / "tiny.safetensors"), classifier_features())
    with pytest.raises(ValueError, match=r"tiny.safetensors' has no images to measure; allowed: fashion-mnist-train, "):
        real_images(str(tmp_path / "tiny.safetensors"))


def test_without_the_data_set_its_statistics_remain(monkeypatch, tmp_path):
    monkeypatch.setattr("engine.metrics.reference.FASHION_MNIST", tmp_path / "absent")
    train, test = (reference_statistics(name, classifier_features()) for name in DATA_SETS)
    assert (train.count, test.count) == (60_000, 10_000)
    assert 0 < frechet_distance(train, test) < 0.05
    with pytest.raises(FileNotFoundError, match="install Debian's package dataset-fashion-mnist, or give another"):
        real_images("fashion-mnist-test")
    with pytest.raises(FileNotFoundError, match="images of fashion-mnist-train are not here"):
        reference_statistics("fashion-mnist-train", tiny_extractor())


@data_set
def test_shipped_statistics_are_of_the_data_set():
    """Its first 2000 images are as near as another sample of that size is; all of it is the slow test."""
    extractor = classifier_features()
    kept = first_features(real_images("fashion-mnist-test"), extractor, 2000)
    shipped = reference_statistics("fashion-mnist-test", extractor)
    assert frechet_distance(shipped, Statistics.of(extractor.name, kept)) < 0.1
    assert (shipped.mean - kept.double().mean(0)).abs().max() < 0.05


@data_set
@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_SETS)
def test_shipped_statistics_can_be_made_again(name):
    extractor = classifier_features()
    again, shipped = measure(real_images(name), extractor), reference_statistics(name, extractor)
    assert again.count == shipped.count
    assert torch.allclose(again.mean, shipped.mean, atol=1e-5)
    assert torch.allclose(again.covariance, shipped.covariance, atol=1e-4)
