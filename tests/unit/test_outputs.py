"""Jobs to files: what is in every format, what is refused, how several ranks share a job."""

import io
import json
import subprocess
import tarfile
import threading
import weakref
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed

import engine
from engine import dealing
from engine.outputs.base import SUMS
from tests.helpers import tree, wavy
from tests.unit.jobs import LABELS, SEEDS, draw, make


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def expected():
    return engine.to_uint8(make().sample(seeds=SEEDS, class_labels=LABELS)).movedim(1, -1).numpy()


@pytest.mark.parametrize("subdirs", [False, True])
def test_png_files(tmp_path, subdirs):
    drawn = draw(tmp_path, subdirs=subdirs)
    assert (drawn.drawn, drawn.torn, drawn.last) == (12, (), True)
    for seed, image in zip(SEEDS, expected(), strict=True):
        name = f"{seed // 1000 * 1000:06d}/{seed:06d}.png" if subdirs else f"{seed:06d}.png"
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), image)
    assert len(tree(tmp_path)) == 12 + 2
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=tmp_path, check=True)


def test_zip_is_a_data_set_of_the_published_code(tmp_path):
    draw(tmp_path, format="zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as file:
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # the same bytes at any time
        labels = json.loads(file.read("dataset.json"))["labels"]
        assert [label for _, label in labels] == LABELS
        assert [name for name, _ in labels] == [f"{s // 1000 * 1000:06d}/{s:06d}.png" for s in SEEDS]
        for (name, _), image in zip(labels, expected(), strict=True):
            assert np.array_equal(pixels(file.read(name)), image)


def test_tar_shards_hold_samples_of_a_png_and_a_class(tmp_path):
    draw(tmp_path, format="tar", shard=7)
    assert sorted(tree(tmp_path)) == [SUMS, "images-000000.tar", "images-000001.tar", "settings.json"]
    found = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as file:
            members = [(m.name, file.extractfile(m).read()) for m in file.getmembers()]
        for (png, data), (cls, label) in zip(members[::2], members[1::2], strict=True):
            assert png.removesuffix(".png") == cls.removesuffix(".cls")
            found.append((png, int(label), pixels(data)))
    for seed, label, image, (name, was, got) in zip(SEEDS, LABELS, expected(), found, strict=True):
        assert (name, was) == (f"{seed:06d}.png", label)
        assert np.array_equal(got, image)


def test_a_shard_is_any_integer(tmp_path):
    draw(tmp_path / "numpy", format="tar", shard=np.int64(7))
    draw(tmp_path / "plain", format="tar", shard=7)
    assert tree(tmp_path / "numpy") == tree(tmp_path / "plain")


def test_npz_arrays(tmp_path):
    draw(tmp_path, format="npz")
    with np.load(tmp_path / "images.npz") as arrays:
        assert np.array_equal(arrays["images"], expected())
        assert arrays["seeds"].tolist() == SEEDS
        assert arrays["labels"].tolist() == LABELS
    draw(tmp_path, format="npz", class_labels=None)
    with np.load(tmp_path / "images.npz") as arrays:
        assert arrays["labels"].tolist() == list(engine.noise.uniform_int(SEEDS, 4))  # what the seeds draw
        assert np.array_equal(arrays["images"], engine.to_uint8(make().sample(seeds=SEEDS)).movedim(1, -1).numpy())


def test_soft_labels_and_latents_without_seeds(tmp_path):
    soft = torch.eye(4)[:3] * 0.5
    job = {"seeds": None, "latents": torch.ones(3, 3, 8, 6), "class_labels": soft}
    prepared = engine.Engine(make().denoiser, sampler=engine.samplers.edm(2), batch_size=2)
    draw(tmp_path / "tar", prepared, format="tar", **job)
    with tarfile.open(tmp_path / "tar" / "images-000000.tar") as file:
        assert file.getnames() == [f"{i:06d}.{kind}" for i in range(3) for kind in ("png", "json")]
        assert json.load(file.extractfile("000001.json")) == [0, 0.5, 0, 0]
    draw(tmp_path / "npz", prepared, format="npz", **job)
    with np.load(tmp_path / "npz" / "images.npz") as arrays:
        assert np.array_equal(arrays["labels"], soft.numpy())


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"format": "gif"}, "format is 'gif'; allowed: png, zip, tar, npz"),
        ({"format": "tar", "shard": 0}, "shard is 0; allowed: an integer from 1"),
        ({"format": "tar", "shard": "10"}, "shard is '10'; allowed: an integer from 1"),
        ({"format": "tar", "shard": True}, "shard is True; allowed: an integer from 1"),
        ({"shard": 7}, "shard is 7 and format is 'png'; allowed: None, or format 'tar'"),
        ({"format": "npz", "shard": 1000}, "shard is 1000 and format is 'npz'; allowed: None, or format 'tar'"),
        ({"format": "zip", "subdirs": True}, "subdirs is True and format is 'zip'; allowed: False, or format 'png'"),
        ({"prepared": make().denoiser}, "engine is a Denoiser; allowed: an engine.Engine"),
        ({"class_labels": 9}, "class_labels contains 9"),
    ],
)
def test_bad_jobs_are_refused_before_any_file(tmp_path, job, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "out", **job)
    assert not (tmp_path / "out").exists()


def test_an_unknown_keyword_is_one_of_draw_to(tmp_path):
    with pytest.raises(TypeError, match=r"^draw_to\(\) got an unexpected keyword argument 'sedes'$"):
        draw(tmp_path / "out", sedes=[1])
    assert not (tmp_path / "out").exists()


def test_seeds_may_be_a_generator(tmp_path):
    draw(tmp_path / "list")
    draw(tmp_path / "generator", seeds=(seed for seed in SEEDS))
    assert tree(tmp_path / "generator") == tree(tmp_path / "list")


def test_images_that_are_no_pngs_go_to_npz_only(tmp_path):
    prepared = engine.Engine(wavy(engine.preconditioning.EDM(), shape=(4, 2, 2)), batch_size=2)
    with pytest.raises(ValueError, match="format is 'zip' and images are"):
        engine.draw_to(prepared, tmp_path, seeds=[1, 2], format="zip")
    engine.draw_to(prepared, tmp_path, seeds=[1, 2], format="npz")
    with np.load(tmp_path / "images.npz") as arrays:
        assert arrays["images"].shape == (2, 2, 2, 4)
        assert "labels" not in arrays


def test_batches_of_a_stream():
    prepared = make()
    whole = dict(prepared.stream(seeds=SEEDS, class_labels=LABELS))
    for positions, images in prepared.stream(seeds=SEEDS, class_labels=LABELS, batches=iter([2, 0])):
        assert torch.equal(images, whole[positions])
    with pytest.raises(ValueError, match="batches contains 3; allowed: 0 to 2"):
        list(prepared.stream(seeds=SEEDS, class_labels=LABELS, batches=[3]))


def test_no_more_than_a_batch_is_held(monkeypatch, tmp_path):
    held = weakref.WeakSet()

    def watch(images):
        assert len(held) <= 2  # of the batch before, until this one has its names
        pixels = engine.to_uint8(images)
        held.update([images, pixels])
        return pixels

    monkeypatch.setattr(engine.engine, "to_uint8", watch)
    assert draw(tmp_path, make(batch_size=1)).drawn == 12


def test_ranks_take_the_next_batch_and_wait_for_nobody(tmp_path):
    """One rank stands still on its first batch until the others have drawn all the rest."""
    store, results, rest = distributed.HashStore(), {}, threading.Event()
    draw(tmp_path / "whole", make(batch_size=1))

    class Slow(dealing.Ranks):
        def done(self):
            if self.rank == 0 and not rest.is_set():
                assert rest.wait(60)
            super().done()
            if self._store.add("done", 0) == self.count - 1:
                rest.set()

    def rank(number):
        team = Slow(store, number)
        for folder in ("first", "second"):  # jobs one after the other, in one store
            results[number, folder] = draw(tmp_path / folder, make(batch_size=1), team=team)

    threads = [threading.Thread(target=rank, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results[0, "first"].drawn <= 1
    for folder in ("first", "second"):
        assert sum(results[number, folder].drawn for number in range(3)) == 12
        assert sum(results[number, folder].last for number in range(3)) == 1
        assert tree(tmp_path / folder) == tree(tmp_path / "whole")


def test_outside_torchrun_there_are_no_ranks():
    with pytest.raises(ValueError, match="not started by torchrun"):
        dealing.Ranks.of_torchrun()
