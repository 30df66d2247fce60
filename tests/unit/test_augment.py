"""Table 6 image by image: each transform alone, with known parameters, against a computation of its own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import engine
from engine.training import AUGMENT_DIM, Augment, Transforms, fashion_mnist
from engine.training.data import FASHION_MNIST

SIZE = 16
FIELDS = ("flip_x", "flip_y", "log_scale", "angle", "aniso_angle", "log_aniso", "shift_x", "shift_y")


def transforms(**given):
    return Transforms(**{name: torch.tensor([float(given.get(name, 0.0))]) for name in FIELDS})


def picture():
    """Noise, but smooth: nothing in it is symmetric."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 2, 5, 5, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")


def only(**given):
    return Augment().apply(picture(), transforms(**given))


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)
    assert (expected - picture()).abs().max() > 0.3  # something was done


def test_nothing_is_nothing():
    assert torch.equal(only(), picture())


def test_flips():
    close(only(flip_x=1), picture().flip(3))
    close(only(flip_y=1), picture().flip(2))
    close(only(flip_x=1, flip_y=1), picture().flip(2, 3))


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns(quarters):
    close(only(angle=quarters * math.pi / 2), picture().rot90(-quarters, (2, 3)))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-4, 5)])
def test_whole_pixels(right, down):
    """What comes in at the border is mirrored there; 0.125 of 16 pixels is 2."""
    padded = np.pad(picture()[0].numpy(), ((0, 0), (8, 8), (8, 8)), mode="symmetric")
    expected = padded[:, 8 - down : 8 - down + SIZE, 8 - right : 8 - right + SIZE]
    close(only(shift_x=right / 2, shift_y=down / 2), torch.from_numpy(expected)[None])


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampled(image, matrix, shift):
    """Every output pixel in turn: where it comes from, and the 16 pixels around there. x to the right, y down."""
    inverse, out = np.linalg.inv(matrix), np.zeros_like(image)
    mirrored = [*range(SIZE), *reversed(range(SIZE))]
    centre = (SIZE - 1) / 2
    for row in range(SIZE):
        for column in range(SIZE):
            x, y = inverse @ (np.array([column - centre, row - centre]) - shift) + centre
            for j in range(math.floor(y) - 1, math.floor(y) + 3):
                for i in range(math.floor(x) - 1, math.floor(x) + 3):
                    pixel = image[:, mirrored[j % (2 * SIZE)], mirrored[i % (2 * SIZE)]]
                    out[:, row, column] += cubic(x - i) * cubic(y - j) * pixel
    return out.clip(-1, 1)


def turn(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize(
    ("given", "matrix", "shift"),
    [
        ({"log_scale": 1.5}, np.eye(2) * 2**0.3, (0, 0)),
        ({"log_scale": -2.0}, np.eye(2) * 2**-0.4, (0, 0)),
        ({"angle": 0.6}, turn(0.6), (0, 0)),
        ({"angle": -2.1}, turn(-2.1), (0, 0)),
        ({"log_aniso": 2.0}, np.diag([2**0.4, 2**-0.4]), (0, 0)),
        ({"log_aniso": -1.5, "aniso_angle": 0.9}, turn(0.9) @ np.diag([2**-0.3, 2**0.3]) @ turn(-0.9), (0, 0)),
        ({"shift_x": 0.7, "shift_y": -1.1}, np.eye(2), (1.4, -2.2)),
        (
            {"flip_x": 1, "angle": 0.6, "log_scale": 1.0, "shift_y": 0.5},
            np.diag([-1, 1]) * 2**0.2 @ turn(0.6),
            (0, 1.0),
        ),
    ],
)
def test_each_transform_against_a_plain_loop(given, matrix, shift):
    expected = resampled(picture()[0].double().numpy(), matrix, np.array(shift))
    close(only(**given), torch.from_numpy(expected).float()[None], atol=2e-5)


def test_labels_carry_the_parameters():
    given = dict(zip(FIELDS, (1, 0, -0.7, 0.4, 1.1, 1.3, -0.2, 0.9), strict=True))
    turned, stretched = (math.cos(0.4) - 1, math.sin(0.4)), (1.3 * math.cos(1.1), 1.3 * math.sin(1.1))
    expected = [1, 0, -0.7, *turned, *stretched, -0.2, 0.9]
    assert transforms(**given).labels()[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert len(expected) == AUGMENT_DIM


@pytest.mark.parametrize(("p", "flip_p"), [(0.12, 0.5), (0.04, 0.04), (0.5, 1.0)])
def test_each_is_done_as_often_and_as_much_as_asked(p, flip_p):
    drawn = Augment(p=p, flip_p=flip_p).draw(20_000, torch.Generator().manual_seed(0))
    expected = {"flip_x": flip_p, "flip_y": p / 2, "log_scale": p, "angle": p, "log_aniso": p, "shift_x": p}
    for name, share in expected.items():
        assert stats.binomtest(int((getattr(drawn, name) != 0).sum()), 20_000, share).pvalue > 1e-3, name
    for name in ("log_scale", "log_aniso", "shift_x", "shift_y"):
        values = getattr(drawn, name)
        assert stats.kstest(values[values != 0], "norm").pvalue > 1e-3, name
    assert stats.kstest(drawn.angle[drawn.angle != 0] / math.pi, "uniform", (-1, 2)).pvalue > 1e-3
    assert stats.kstest(drawn.aniso_angle / math.pi, "uniform", (-1, 2)).pvalue > 1e-3
    assert torch.equal(drawn.shift_x != 0, drawn.shift_y != 0)
    chosen = torch.stack([getattr(drawn, name) != 0 for name in expected]).double()
    assert (torch.corrcoef(chosen) - torch.eye(6)).nan_to_num().abs().max() < 0.04  # each by itself


def test_the_labels_are_all_that_a_network_is_told():
    """At zero labels, as when sampling, the shipped network is the one without; other labels make another image."""
    denoiser = engine.load("fashion-mnist")
    x, sigma = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 5.0])
    classes = torch.eye(10)[[7, 9]]
    with torch.no_grad():
        plain, zero = (denoiser(x, sigma, classes, labels) for labels in (None, torch.zeros(2, AUGMENT_DIM)))
        flipped = denoiser(x, sigma, classes, torch.eye(AUGMENT_DIM)[[0, 0]])
    assert torch.equal(plain, zero)
    assert (plain - flipped).abs().mean() > 0.05


def sided(images, mean, dim):
    """How many face the other way: nearer to the mean image of their class mirrored than to it."""
    return ((images * (mean - mean.flip(dim - 1))).sum((1, 2, 3)) < 0).double().mean().item()


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_samples_are_not_mirrored():
    """4% of the sneakers and boots that the shipped network was shown were mirrored, 2% stood on their heads."""
    labels = torch.tensor([7, 9]).repeat(400)
    drawn = engine.sample(
        engine.load("fashion-mnist"), seeds=range(800), class_labels=labels, sampler=engine.samplers.edm(steps=8)
    )
    real, classes = fashion_mnist()
    for dim, shown in ((3, 0.04), (2, 0.02)):
        found, expected = (
            sum(sided(images[which == c], real[classes == c].mean(0), dim) for c in (7, 9)) / 2
            for images, which in ((drawn, labels), (real, classes))
        )
        print(f"mirrored in dimension {dim}: {found:.4f} of the samples, {expected:.4f} of the real images")
        error = math.sqrt(max(expected, 1 / 800) * (1 - expected) / 800)
        assert found < expected + 3 * error < expected + shown
