"""Images: the published byte rounding, files that are whole or absent, grids."""

import numpy as np
import pytest
import torch
from PIL import Image

import engine


def test_to_uint8_is_the_published_rounding():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.999, 1.0, 3.0])
    expected = (values * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert torch.equal(engine.to_uint8(values), expected)
    assert engine.to_uint8(values).tolist() == [0, 0, 64, 128, 255, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels, tmp_path):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    engine.save_png(image, tmp_path / "sub" / "a.png")
    read = np.asarray(Image.open(tmp_path / "sub" / "a.png")).reshape(5, 7, channels)
    assert np.array_equal(read, image.permute(1, 2, 0).numpy())


def test_grid_places_images_row_by_row(tmp_path):
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 4, 4) * 50
    engine.save_grid(images, tmp_path / "grid.png", columns=3)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))[:, :, 0]
    assert grid.shape == (2 * 6 + 2, 3 * 6 + 2)
    assert grid[3::6, 3::6][:, :3].ravel().tolist() == [
        0,
        50,
        100,
        150,
        200,
        255,
    ]  # the last place stays white
    engine.save_grid(images, tmp_path / "labelled.png", labels=list("abcde"), scale=2)
    with Image.open(tmp_path / "labelled.png") as labelled:
        assert labelled.size == (3 * 10 + 2, 2 * 24 + 2)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(2, 2, 4, 4), {}, r"images has shape \[2, 2, 4, 4\]; allowed: \[N, 1 or 3, H, W\]"),
        (torch.zeros(2, 1, 4, 4), {"labels": ["a"]}, "labels has 1 entries; allowed: one an image"),
        (torch.zeros(2, 1, 4, 4), {"scale": 0}, "scale is 0; allowed: an integer from 1"),
    ],
)
def test_grid_errors(images, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        engine.save_grid(images, tmp_path / "grid.png", **options)
    assert not list(tmp_path.iterdir())
