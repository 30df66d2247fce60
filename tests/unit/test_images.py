"""Images: the published byte rounding, files that are whole or absent, grids."""

import numpy as np
import pytest
import torch
from PIL import Image

import engine
from engine.images import load_png, load_pngs, png_files


def test_to_uint8_is_the_published_rounding():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.999, 1.0, 3.0])
    expected = (values * 127.5 + 128).clip(0, 255).to(torch.uint8)
    assert torch.equal(engine.to_uint8(values), expected)
    assert engine.to_uint8(values).tolist() == [0, 0, 64, 128, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_half_precision_is_rounded_once(dtype):
    values = torch.linspace(-1.1, 1.1, 4001).to(dtype)
    expected = (values.double() * 127.5 + 128).clip(0, 255).to(torch.uint8)
    apart = (engine.to_uint8(values).int() - expected.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).double().mean() < 1e-3  # where float32's rounding steps over a level


def test_bytes_stay_bytes_and_nothing_else_is_taken():
    pixels = torch.arange(256).to(torch.uint8)
    assert torch.equal(engine.to_uint8(pixels), pixels)
    for values in (pixels.long(), pixels > 3, pixels.to(torch.complex64)):
        with pytest.raises(ValueError, match=rf"^images is {values.dtype}; allowed: a floating dtype"):
            engine.to_uint8(values)
    with pytest.raises(ValueError, match=r"^images is a ndarray; allowed: a floating tensor"):
        engine.to_uint8(pixels.numpy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 4, 4), r"^image has shape \[1, 3, 4, 4\]; allowed: \[1 or 3, H, W\]$"),
        (torch.zeros(2, 4, 4), r"^image has shape \[2, 4, 4\]; allowed: \[1 or 3, H, W\]$"),
        (torch.zeros(1, 0, 4), r"^image has shape \[1, 0, 4\]; allowed: \[1 or 3, H, W\]$"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), r"^images is torch\.int64; allowed: a floating dtype"),
        ([[0.0]], r"^image is a list; allowed: a tensor \[1 or 3, H, W\]$"),
    ],
)
def test_png_errors(image, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        engine.save_png(image, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_that_are_read(mode, tmp_path):
    pixels = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    for channels in (1, 3):
        assert load_png(tmp_path / "a.png", (channels, 2, 2)).tolist() == [pixels.tolist()] * channels


@pytest.mark.parametrize("mode", ["I;16", "LA", "RGBA"])
def test_modes_that_would_lose_something_are_refused(mode, tmp_path):
    wide = Image.fromarray(np.full((2, 2), 40000, dtype=np.uint16))
    (wide if mode == "I;16" else Image.new(mode, (2, 2))).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png is mode {mode}.*; allowed: 1, L, P, RGB, without transparency$"):
        load_pngs(tmp_path, (1, 2, 2))


def test_a_transparent_color_is_refused(tmp_path):
    Image.new("P", (2, 2)).save(tmp_path / "a.png", transparency=0)
    with pytest.raises(ValueError, match=r"a\.png is mode P with transparency; allowed: "):
        load_png(tmp_path / "a.png", (3, 2, 2))


def test_files_named_by_seeds_are_in_the_order_of_seeds(tmp_path):
    names = ["999999.png", "1000000.png", "1000001.png", "9999999.png", "10000000.png", "cat.png"]
    for name in names:
        engine.save_png(torch.zeros(1, 2, 2), tmp_path / name)
        engine.save_png(torch.zeros(1, 2, 2), tmp_path / "sub" / name)
    assert [path.name for path in png_files(tmp_path)] == names * 2
    assert load_pngs(tmp_path / "sub", (1, 2, 2))[1] == names


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels, tmp_path):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    engine.save_png(image, tmp_path / "sub" / "a.png")
    with pytest.raises(ValueError, match=r"^path is .*a\.jpg'?; allowed: a file of this kind, \.png$"):
        engine.save_png(image, tmp_path / "a.jpg")
    read = np.asarray(Image.open(tmp_path / "sub" / "a.png")).reshape(5, 7, channels)
    assert np.array_equal(read, image.permute(1, 2, 0).numpy())


def test_grid_places_images_row_by_row(tmp_path):
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 4, 4) * 50
    with pytest.raises(ValueError, match=r"path is '.*grid.jpg'; allowed: a file of this kind, .png"):
        engine.save_grid(images, tmp_path / "grid.jpg")
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
        (torch.zeros(2, 1, 4, 4), {"labels": [1, 2]}, r"labels is \[1, 2\]; allowed: texts, or None"),
        (torch.zeros(2, 1, 4, 4), {"scale": 0}, "scale is 0; allowed: an integer from 1"),
        (torch.zeros(2, 1, 4, 4), {"scale": 1.5}, "scale is 1.5; allowed: an integer from 1"),
        (torch.zeros(2, 1, 4, 4), {"columns": 0}, "columns is 0; allowed: an integer from 1, or None"),
        (torch.zeros(2, 1, 4, 4), {"columns": -1}, "columns is -1; allowed: an integer from 1, or None"),
        ([torch.zeros(1, 4, 4)], {}, r"images is a list; allowed: a tensor \[N, 1 or 3, H, W\]"),
    ],
)
def test_grid_errors(images, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        engine.save_grid(images, tmp_path / "grid.png", **options)
    assert not list(tmp_path.iterdir())
