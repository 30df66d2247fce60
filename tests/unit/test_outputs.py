"""Jobs to files: every format, resumed, torn, refused, dealt to several ranks; always the same bytes."""

import errno
import io
import json
import os
import re
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
from engine import dealing, drawing
from engine.outputs import FORMATS
from engine.outputs.archive import Archive
from engine.outputs.base import PARTS, SUMS
from engine.outputs.png_folder import PngFolder
from tests.helpers import tree, wavy

SEEDS = [*range(995, 1005), 3, 7**20]
LABELS = [i % 4 for i in range(len(SEEDS))]


def make(batch_size=5, steps=2, **options):
    denoiser = wavy(engine.preconditioning.EDM(), shape=(3, 8, 6), label_dim=4)
    sampler = engine.samplers.edm(steps, S_churn=1)
    return engine.Engine(denoiser, sampler=sampler, batch_size=batch_size, **options)


def draw(folder, prepared=None, **job):
    return engine.draw_to(prepared or make(), folder, **{"seeds": SEEDS, "class_labels": LABELS} | job)


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


def test_npz_arrays(tmp_path):
    draw(tmp_path, format="npz")
    with np.load(tmp_path / "images.npz") as arrays:
        assert np.array_equal(arrays["images"], expected())
        assert arrays["seeds"].tolist() == SEEDS
        assert arrays["labels"].tolist() == LABELS


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


class Power(Exception):
    """It went."""


def interrupted(monkeypatch, folder, after, **job):
    """A job whose process ends in the middle of writing batch number ``after``."""
    output = PngFolder if job["format"] == "png" else Archive
    write = output.write

    def stop(self, batch, images):
        if batch == after:
            for stray in (folder / PARTS / ".000009.zip.1234.tmp", folder / ".000995.png.1234.tmp"):
                stray.parent.mkdir(exist_ok=True, parents=True)
                stray.write_bytes(b"half")
            raise Power
        write(self, batch, images)

    with monkeypatch.context() as patch:
        patch.setattr(output, "write", stop)
        with pytest.raises(Power):
            draw(folder, **job)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("after", [0, 2])
def test_what_is_interrupted_is_resumed(monkeypatch, tmp_path, format, after):
    job = {"format": format, "shard": 7}
    draw(tmp_path / "whole", **job)
    interrupted(monkeypatch, tmp_path / "out", after, **job)
    drawn = draw(tmp_path / "out", resume=True, **job)
    assert (drawn.drawn, drawn.torn) == (12 - 5 * after, ())
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert draw(tmp_path / "out", resume=True, **job).drawn == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("format", FORMATS)
def test_every_file_torn_is_found_and_drawn_anew(tmp_path, format):
    job = {"format": format, "shard": 7}
    draw(tmp_path, **job)
    whole = tree(tmp_path)
    for name in set(whole) - {"settings.json", SUMS}:
        path = tmp_path / name
        for damaged in (path.read_bytes()[:-3], b"", path.read_bytes().replace(b"\0", b"\1", 1), None):
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            drawn = draw(tmp_path, resume=True, **job)
            assert drawn.torn == (() if damaged is None else (name,))
            assert 2 <= drawn.drawn <= 12 if format != "png" else drawn.drawn in (2, 5)
            assert tree(tmp_path) == whole
    (tmp_path / SUMS).write_bytes(b"\xff garbage")
    assert draw(tmp_path, resume=True, **job).drawn == 12
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("format", FORMATS)
def test_every_part_torn_is_found_and_drawn_anew(monkeypatch, tmp_path, format):
    job = {"format": format, "shard": 7}
    draw(tmp_path / "whole", **job)
    for part, damage in [
        (0, lambda b: b[:-9]),
        (1, lambda b: b""),
        (0, lambda b: b[:90] + bytes([b[90] ^ 8]) + b[91:]),
    ]:
        interrupted(monkeypatch, tmp_path / "out", 2, **job)
        path = next((tmp_path / "out" / PARTS).glob(f"{part:06d}.*"))
        path.write_bytes(damage(path.read_bytes()))
        drawn = draw(tmp_path / "out", resume=True, **job)
        assert drawn.drawn == 2 + 5
        assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_part_damaged_while_the_job_runs(monkeypatch, tmp_path):
    draw(tmp_path / "whole", format="tar")
    finish = Archive.finish

    def damage(self):
        path = tmp_path / "out" / PARTS / "000001.zip"
        path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDOT"))
        finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "finish", damage)
        with pytest.raises(ValueError, match=r"000001\.zip was damaged after it was written .*; resume draws it anew"):
            draw(tmp_path / "out", format="tar")
    assert draw(tmp_path / "out", format="tar", resume=True).drawn == 5
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [*SEEDS[:-1], 8]}, "seeds is"),
        ({"class_labels": 1}, "asked is"),
        ({"format": "zip"}, 'format is "zip"; allowed: "png"'),
        ({"settings": {"steps": 3}}, "steps is 3; allowed: null"),
        ({"prepared": {"batch_size": 4}}, "batch_size is 4; allowed: 5, as .*settings.json has it"),
        ({"prepared": {"steps": 3}}, "plan is"),
        ({"prepared": {"dtype": torch.bfloat16}}, "network is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_job_is_not_resumed(tmp_path, change, message):
    draw(tmp_path)
    before = tree(tmp_path)
    prepared = make(**change.pop("prepared", {}))
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, prepared, resume=True, **change)
    assert tree(tmp_path) == before


def test_other_weights_are_another_job(tmp_path):
    draw(tmp_path)
    other = make()
    with torch.no_grad():
        other.denoiser.model.gain.mul_(1.5)
    with pytest.raises(ValueError, match="network is"):
        draw(tmp_path, other, resume=True)


def test_another_number_of_threads_is_another_job(monkeypatch, tmp_path):
    draw(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(ValueError, match="threads is 77"):
        draw(tmp_path, resume=True)


def test_damaged_settings_are_named(tmp_path):
    draw(tmp_path)
    for damaged in (b"{", b"[]", b"\xff"):
        (tmp_path / "settings.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            draw(tmp_path, resume=True)


def test_anew_forgets_what_was_there(monkeypatch, tmp_path):
    """Parts and checksums of other settings must not be taken for this job's."""
    interrupted(monkeypatch, tmp_path / "out", 2, format="zip")
    interrupted(monkeypatch, tmp_path / "out", 0, format="zip", class_labels=1)
    assert draw(tmp_path / "out", format="zip", class_labels=1, resume=True).drawn == 12
    draw(tmp_path / "whole", format="zip", class_labels=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"format": "gif"}, "format is 'gif'; allowed: png, zip, tar, npz"),
        ({"shard": 0}, "shard is 0; allowed: an integer from 1"),
        ({"class_labels": 9}, "class_labels contains 9"),
    ],
)
def test_bad_jobs_are_refused_before_any_file(tmp_path, job, message):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "out", **job)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize(("format", "writes"), [("png", 12 + 3 + 2), ("zip", 6), ("tar", 6), ("npz", 6)])
def test_a_full_disk_loses_nothing(monkeypatch, tmp_path, format, writes):
    """The disk fills at every write in turn; what was written is kept, and the rest drawn when there is room."""
    draw(tmp_path / "whole", format=format)
    replace, room = os.replace, [0]

    def until_full(source, target):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", until_full)
    for before in range(writes):
        out, room[0] = tmp_path / f"out{before}", before
        with pytest.raises(OSError, match=re.escape(str(out))) as caught:
            draw(out, format=format)
        assert caught.value.errno == errno.ENOSPC
        assert len(tree(out)) == before
        room[0] = writes
        draw(out, format=format, resume=True)
        assert tree(out) == tree(tmp_path / "whole")


def test_no_more_than_a_batch_is_held(monkeypatch, tmp_path):
    held = weakref.WeakSet()

    def watch(images):
        assert len(held) <= 2  # of the batch before, until this one has its names
        pixels = engine.to_uint8(images)
        held.update([images, pixels])
        return pixels

    monkeypatch.setattr(drawing, "to_uint8", watch)
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
