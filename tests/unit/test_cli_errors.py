"""Bad input of the commands that measure and train: one line and exit status 2, before any data is read."""

import sys

import pytest
import torch

import engine
from engine.metrics.classifier import train_classifier
from tests.unit.test_cli import complaint, run

NO_DATA = ["--data", "/nowhere"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", *NO_DATA, "--device", "foo"], "device is 'foo'; allowed: 'cpu'"),
        (["train", *NO_DATA, "--device", "foo", "--dtype", "float32"], "device is 'foo'; allowed: 'cpu'"),
        (["train", *NO_DATA, "--images", "0"], "images is 0; allowed: an integer from 1"),
        (["train", *NO_DATA], "/nowhere/train-images-idx3-ubyte.gz does not exist"),
        (["train-classifier", *NO_DATA, "--epochs", "0"], "'--epochs': 0 is not in the range x>=1"),
        (["train-classifier", *NO_DATA, "--seed", 2**70], "'--seed': "),
        (["loss-curve", *NO_DATA, "--images", "1"], "'--images': 1 is not in the range x>=2"),
        (["loss-curve", *NO_DATA, "--sigmas", "1"], "'--sigmas': 1 is not in the range x>=2"),
        (["zero-snr", *NO_DATA, "--images", "0"], "'--images': 0 is not in the range x>=1"),
        (["zero-snr", *NO_DATA, "--per-class", "19"], "'--per-class': 19 is not in the range x>=20"),
        (["zero-snr", *NO_DATA, "--steps", "1001"], "'--steps': 1001 is not in the range 1<=x<=1000"),
        (["report", "--measure", "churn", "--device", "foo", "--measurements", "."], "device is 'foo'; allowed"),
        (["statistics", "--data", ".", "--inception", __file__, "--device", "foo", "--out", "x"], "device is 'foo'"),
        (["plan", "--table", "/proc/a.csv"], "No such file or directory: '/proc/a.csv'"),
        (["plan", "--table", "folder"], "Is a directory: 'folder'"),
        (["convert", "fashion-mnist", "/proc/a.safetensors"], "/proc/a.safetensors"),
        (["evaluate", "--json", f"{__file__}/a.json"], f"in a folder that can be written, which {__file__} is not"),
        (["tune", "--json", f"{__file__}/b/a.json"], f"in a folder that can be written, which {__file__} is not"),
        (["invert", "--model", "fashion-mnist", "--image", ".", "--out", f"{__file__}/a"], "in a folder that can be"),
        (["statistics", "--data", ".", "--out", f"{__file__}/a"], "in a folder that can be written"),
        (["evaluate", "--json", "folder"], "'--json': File 'folder' is a directory"),
        (["sample", "--model", "fashion-mnist", "--threads", "5000"], "5000 is not in the range 1<=x<=1024"),
        (
            ["sample", "--model", "fashion-mnist", "--image", "folder", "--out", "."],
            "--image is folder, which",
        ),
        (["sample", "--model", "fashion-mnist", "--shard", "7"], "shard is 7 and format is 'png'; allowed: None"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    assert message in complaint(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_grid_of_somebody_else_stays(monkeypatch, tmp_path, capsys):
    (tmp_path / "grid.png").write_bytes(b"mine")
    job = ["sample", "--model", "fashion-mnist", "--grid", "--out", tmp_path]
    assert run(monkeypatch, *job) == 2
    assert f"--grid would overwrite {tmp_path / 'grid.png'}, which no job has written" in complaint(capsys)
    assert (tmp_path / "grid.png").read_bytes() == b"mine"


def test_too_few_real_images_are_refused_before_any_is_drawn(monkeypatch, tmp_path, capsys):
    engine.save_png(torch.zeros(1, 32, 32), tmp_path / "a.png")
    monkeypatch.setattr(sys.modules["engine.cli.evaluate"], "draw_measured", None)
    assert run(monkeypatch, "evaluate", "--images", 20, "--reference", tmp_path) == 2
    assert "images; allowed: " in complaint(capsys)


def test_a_checkpoint_is_not_converted_onto_itself(monkeypatch, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    assert run(monkeypatch, "convert", "fashion-mnist", path) == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert run(monkeypatch, "convert", path, path, "--dtype", "bfloat16") == 2
    assert "the source itself; allowed: another file" in complaint(capsys)
    assert path.read_bytes() == before


def test_a_damaged_data_file_is_no_interruption(monkeypatch, tmp_path, capsys):
    """A gzip file that ends too soon raises EOFError, which click takes for a user who goes."""
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb")
    assert run(monkeypatch, "train", "--data", tmp_path, "--out", tmp_path / "out") == 2
    assert "train-images-idx3-ubyte.gz is not a whole gzip file" in complaint(capsys)


@pytest.mark.parametrize("error", [ValueError("two\nlines"), torch.OutOfMemoryError("  two\n\tlines\n")])
def test_messages_of_several_lines_become_one(monkeypatch, capsys, error):
    def fail(*of):
        raise error

    monkeypatch.setattr("engine.cli.samplers.take_sampler", fail)
    assert run(monkeypatch, "plan") == 2
    assert complaint(capsys) == "edm-engine: two lines"


def test_no_epoch_or_no_batch_is_refused():
    images, labels = torch.zeros(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64)
    for options, message in (({"epochs": 0}, "epochs is 0"), ({}, "batch_size is 128; allowed: at most the 4")):
        with pytest.raises(ValueError, match=message):
            next(train_classifier(images, labels, **options))
