"""Jobs interrupted, torn, out of disk, and resumed: always the bytes of the undisturbed one."""

import errno
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import engine
from engine import Sampler, drawing
from engine.adapters import from_k_diffusion
from engine.files import locked
from engine.guidance import ClassifierFree, ClassifierGuidance
from engine.outputs import FORMATS, kinds
from engine.outputs.archive import Archive
from engine.outputs.base import PARTS, SUMS, WRITTEN, digest, read_sums, write_sums
from engine.outputs.png_folder import PngFolder
from engine.provenance import code
from engine.samplers.edm import EDMSampler
from tests.helpers import tree
from tests.unit.jobs import SEEDS, draw, make


class Power(Exception):
    """It went."""


def interrupted(monkeypatch, folder, after, **job):
    """A job whose process ends in the middle of writing batch number ``after``."""
    output = PngFolder if job["format"] == "png" else Archive
    write = output.write

    def stop(self, batch, images):
        if batch == after:
            for stray in (
                folder / PARTS / ".000009.zip.0123456789abcdef.tmp",
                folder / ".000995.png.0123456789abcdef.tmp",
            ):
                stray.parent.mkdir(exist_ok=True, parents=True)
                stray.write_bytes(b"half")
            raise Power
        write(self, batch, images)

    with monkeypatch.context() as patch:
        patch.setattr(output, "write", stop)
        with pytest.raises(Power):
            draw(folder, **job)


def filed(format, shard):
    """A job's format with an option that is its own."""
    options = {"png": {"subdirs": True}, "tar": {"shard": shard}}
    return {"format": format, **options.get(format, {})}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("after", [0, 2])
def test_what_is_interrupted_is_resumed(monkeypatch, tmp_path, format, after):
    job = filed(format, 7)
    draw(tmp_path / "whole", **job)
    interrupted(monkeypatch, tmp_path / "out", after, **job)
    drawn = draw(tmp_path / "out", resume=True, **job)
    assert (drawn.drawn, drawn.torn) == (12 - 5 * after, ())
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert draw(tmp_path / "out", resume=True, **job).drawn == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("format", FORMATS)
def test_every_file_torn_is_found_and_drawn_anew(tmp_path, format):
    job = filed(format, 7)
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
    job = filed(format, 7)
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
        ({"class_labels": 1}, "classes is"),
        ({"format": "zip"}, 'format is "zip"; allowed: "png"'),
        ({"settings": {"steps": 3}}, "steps is 3; allowed: null"),
        ({"prepared": {"batch_size": 4}}, "batch_size is 4; allowed: 5, as .*settings.json has it"),
        ({"prepared": {"steps": 3}}, "plan: levels: steps is 3; allowed: 2"),
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


# All of one name, as in any module.
LAMBDAS = [
    lambda x, sigma, class_labels, gain=2: gain * x,
    lambda x, sigma, class_labels, gain=3: gain * x,
    lambda x, sigma, class_labels: 2 * x,
    lambda x, sigma, class_labels: 3 * x,
]


def test_another_function_of_the_same_name_is_another_job(tmp_path):
    for i, gradient in enumerate(LAMBDAS):
        folder = tmp_path / str(i)
        draw(folder, make(guidance=ClassifierGuidance(0.5, gradient=gradient)))
        assert draw(folder, make(guidance=ClassifierGuidance(0.5, gradient=gradient)), resume=True).drawn == 0
        for other in LAMBDAS[:i]:
            with pytest.raises(ValueError, match=r"^guided: gradient"):
                draw(folder, make(guidance=ClassifierGuidance(0.5, gradient=other)), resume=True)


def bare(network):
    """An engine for a network that has no parameters."""
    denoiser = engine.Denoiser(network, engine.preconditioning.EDM(), img_shape=(3, 8, 6))
    return engine.Engine(denoiser, sampler=engine.samplers.edm(2), batch_size=5)


def wrapped(function):
    denoiser = from_k_diffusion(function, img_shape=(3, 8, 6), sigma_min=0.01, sigma_max=80)
    return engine.Engine(denoiser, sampler=engine.samplers.edm(2), batch_size=5)


class Gain(nn.Module):
    def __init__(self, std):
        super().__init__()
        self.std, self.seen = std, {}

    def forward(self, x, c_noise):
        self.seen[len(x)] = self.std * x  # as others keep embeddings by size
        return self.seen[len(x)].clone()


class Gained(Gain):
    pass


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (lambda: wrapped(lambda x, sigma: 0 * x), [lambda: wrapped(lambda x, sigma: 0.9 * x)]),
        (lambda: bare(Gain(0.5)), [lambda: bare(Gain(0.1)), lambda: bare(Gained(0.5))]),
    ],
    ids=["function", "module"],
)
def test_another_network_without_weights_is_another_job(monkeypatch, tmp_path, make, others):
    job = {"class_labels": None}
    draw(tmp_path / "whole", make(), **job)
    draw(tmp_path / "out", make(), **job)
    (tmp_path / "out" / "000996.png").unlink()
    before = tree(tmp_path / "out")
    for other in others:
        with pytest.raises(ValueError, match="network_modules is"):
            draw(tmp_path / "out", other(), resume=True, **job)
        assert tree(tmp_path / "out") == before
    assert draw(tmp_path / "out", make(), resume=True, **job).drawn == 5
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_an_engine_that_has_drawn_resumes(tmp_path):
    """With what its network keeps for itself since."""
    prepared = bare(Gain(0.5))
    draw(tmp_path, prepared, class_labels=None)
    assert draw(tmp_path, prepared, class_labels=None, resume=True).drawn == 0


def test_many_weights_of_guidance_are_told_apart(tmp_path):
    seeds = range(1500)

    def guided(change):
        weights = np.linspace(1, 2, len(seeds))
        weights[700] += change
        return make(500, 1, guidance=ClassifierFree(weights))

    job = {"seeds": seeds, "class_labels": 1, "format": "zip"}
    draw(tmp_path, guided(0), **job)
    assert draw(tmp_path, guided(0), resume=True, **job).drawn == 0
    with pytest.raises(ValueError, match=r"^guided: weight is"):
        draw(tmp_path, guided(1), resume=True, **job)


class Plain(Sampler):
    """A user's sampler that is no dataclass."""

    def __init__(self, steps):
        self.inner = engine.samplers.edm(steps)

    @property
    def steps(self):
        return self.inner.steps

    def rows(self, preconditioning):
        return self.inner.rows(preconditioning)


def test_a_sampler_that_is_no_dataclass_is_its_table(tmp_path):
    draw(tmp_path, make(sampler=Plain(2)))
    assert draw(tmp_path, make(sampler=Plain(2)), resume=True).drawn == 0
    with pytest.raises(ValueError, match=r"table is .*sha256"):
        draw(tmp_path, make(sampler=Plain(3)), resume=True)


def test_a_later_versions_rows_are_another_job(monkeypatch, tmp_path):
    """The same sampler by name and fields, whose code has changed."""
    draw(tmp_path)
    rows_of = EDMSampler.rows

    def other(self, preconditioning):
        first, *rest = rows_of(self, preconditioning)
        return [replace(first, begin_scale=0.5 * first.begin_scale), *rest]

    monkeypatch.setattr(EDMSampler, "rows", other)
    with pytest.raises(ValueError, match=r"^table is .*sha256"):
        draw(tmp_path, resume=True)


def test_another_number_of_threads_is_another_job(monkeypatch, tmp_path):
    draw(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(ValueError, match="threads is 77"):
        draw(tmp_path, resume=True)


def test_other_code_is_another_job(monkeypatch, tmp_path):
    draw(tmp_path)
    monkeypatch.setattr(drawing, "code", lambda: "other")
    with pytest.raises(ValueError, match=f'^code is "other"; allowed: "{code()}", as .*settings.json has it'):
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


@pytest.mark.parametrize(("format", "writes"), [("png", 12 + 3 + 2), ("zip", 7), ("tar", 7), ("npz", 7)])
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


FEWER = {"seeds": SEEDS[:3], "class_labels": 2}


@pytest.mark.parametrize("then", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_anew_leaves_nothing_of_an_earlier_job(tmp_path, first, then):
    draw(tmp_path / "out", **filed(first, 1))
    assert all(map(WRITTEN.fullmatch, read_sums(tmp_path / "out" / SUMS)))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    draw(tmp_path / "out", **filed(then, 1), **FEWER)
    draw(tmp_path / "whole", **filed(then, 1), **FEWER)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole") | {"notes.txt": b"mine"}
    assert not (tmp_path / "out" / "001000").exists()


def test_anew_leaves_nothing_of_an_interrupted_job(monkeypatch, tmp_path):
    """Interrupted between two files, in a batch of images and at the end."""
    replace = os.replace

    def stop(source, target):
        replace(source, target)
        if str(target).endswith(("000996.png", "images-000001.tar")):
            raise Power

    draw(tmp_path / "whole", **FEWER)
    for format in ("png", "tar"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            with pytest.raises(Power):
                draw(tmp_path / format, **filed(format, 1))
        assert [name for name in tree(tmp_path / format) if WRITTEN.fullmatch(name)]
        draw(tmp_path / format, **FEWER)
        assert tree(tmp_path / format) == tree(tmp_path / "whole")


@pytest.mark.parametrize("text", ['{"editor.tabSize": 4}', "[]", "// mine", ""])
def test_settings_of_somebody_else_stay(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"folder is .*, whose settings.json no job has written; allowed: another, or without it"
    ):
        draw(tmp_path)
    assert tree(tmp_path) == {"settings.json": text.encode()}


@pytest.mark.parametrize("first", ["nobody", "a job"])
@pytest.mark.parametrize("format", FORMATS)
def test_images_of_somebody_else_stay(tmp_path, format, first):
    """Of a name that the job would write, whether nothing else is there or a job, whose file was worked on since."""
    job = filed(format, 1)
    if first == "a job":
        draw(tmp_path, **job)
    name = {"png": "000000/000995.png", "zip": "images.zip", "tar": "images-000000.tar", "npz": "images.npz"}[format]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    before = tree(tmp_path)
    said = f"folder is {tmp_path}, whose {name} is not what a job wrote; allowed: another, or without it"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        draw(tmp_path, **job)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("text", ['{"editor.tabSize": 4}', None])
@pytest.mark.parametrize("name", [SUMS, f"{PARTS}/images.zip.sha256"])
def test_lists_of_somebody_else_stay_and_name_nothing_to_remove(tmp_path, name, text):
    """What `sha256sum` wrote of files that are called like ours."""
    (tmp_path / "images.zip").write_bytes(b"mine")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_sums(tmp_path / name, {"images.zip": digest(tmp_path / "images.zip")})
    if text:
        (tmp_path / "settings.json").write_text(text)
    before = tree(tmp_path)
    foreign = "settings.json" if text else name.partition("/")[0]
    with pytest.raises(ValueError, match=f"^folder is .*, whose {re.escape(foreign)} no job has written; allowed: "):
        draw(tmp_path)
    assert tree(tmp_path) == before


def test_a_file_where_a_folder_goes_is_refused(tmp_path):
    (tmp_path / "000000").write_bytes(b"mine")
    with pytest.raises(ValueError, match="whose 000000 is not what a job wrote"):
        draw(tmp_path, subdirs=True)
    assert tree(tmp_path) == {"000000": b"mine"}


def test_what_was_asked_for_otherwise_is_named(tmp_path):
    image = torch.zeros(len(SEEDS), 3, 8, 6)
    draw(tmp_path, image=image)
    with pytest.raises(ValueError, match=r"^asked: mask is .*sha256.*; allowed: null, as "):
        draw(tmp_path, image=image, mask=torch.ones(1, 8, 6, dtype=torch.bool), resume=True)


def test_settings_that_were_torn_are_a_jobs_all_the_same(tmp_path):
    draw(tmp_path)
    whole = tree(tmp_path)
    (tmp_path / "settings.json").write_bytes(b"")
    draw(tmp_path)
    assert tree(tmp_path) == whole


def test_anew_removes_only_what_the_earlier_job_wrote(tmp_path):
    """Whatever its list says: a file of another name or with other bytes, and one outside the folder, stay."""
    out, beside = tmp_path / "out", tmp_path / "beside"
    draw(out)
    (out / "000003.png").write_bytes(b"replaced")
    beside.mkdir()
    (out / "001000").symlink_to(beside)
    (out / "000011.png").symlink_to(out / "notes.txt")
    others = ["notes.txt", ".000007.png", "seven/000007.png", "../beside/000009.png", "001000/000010.png"]
    for name in others:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"other")
    listed = [*others, "000011.png", str(beside / "000010.png"), "settings.json"]
    folders = dict.fromkeys(["001000", "seven", ".", "..", ""], "0" * 64)
    write_sums(out / SUMS, read_sums(out / SUMS) | {name: digest(out / name) for name in listed} | folders)
    draw(out, **FEWER)
    drawn = {f"{seed:06d}.png" for seed in FEWER["seeds"]} | {"settings.json", SUMS}
    assert set(tree(out)) == drawn | {"000003.png", "000011.png", "notes.txt", ".000007.png", "seven/000007.png"}
    assert set(tree(beside)) == {"000009.png", "000010.png"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_that_cannot_begin_loses_nothing(tmp_path, format):
    draw(tmp_path, format=format)
    before = tree(tmp_path)
    with pytest.raises(NotImplementedError, match="meta"):  # settings that cannot be written
        draw(tmp_path, format=format, settings={"scale": torch.ones(3, device="meta")}, **FEWER)
    with pytest.raises(ValueError, match="class_labels contains 9"):
        draw(tmp_path, format=format, seeds=[1], class_labels=9)
    assert tree(tmp_path) == before


def test_settings_of_any_names_are_those_of_the_resumed_job(tmp_path):
    settings = {1: 2, "folds": {3: 4}, (5, 6): None}
    draw(tmp_path, settings=settings)
    before = tree(tmp_path)
    draw(tmp_path, settings=settings, resume=True)
    assert tree(tmp_path) == before
    with pytest.raises(ValueError, match="1 is 7; allowed: 2"):
        draw(tmp_path, settings=settings | {1: 7}, resume=True)


def test_an_earlier_job_can_be_resumed_until_its_lists_are_gone(monkeypatch, tmp_path):
    draw(tmp_path)
    before = tree(tmp_path)
    unlink, room = os.unlink, [3]

    def until(path, **options):
        room[0] -= 1
        if room[0] < 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", until)
        with pytest.raises(PermissionError):
            draw(tmp_path, **FEWER)
    assert len(tree(tmp_path)) == len(before) - 3
    draw(tmp_path, resume=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", [0, 7, 999_999, 10**9, 2**64 - 1])
def test_files_are_called_what_is_removed(number):
    images = engine.outputs.Images([number], None, (3, 8, 8))
    names = [images.name(0, subdirs) for subdirs in (False, True)]
    names += [kind.file(number) for kind in (kinds.ZIP, kinds.TAR, kinds.NPZ)]
    assert all(WRITTEN.fullmatch(name) for name in names)


def test_two_jobs_in_one_folder_at_once_are_refused(tmp_path):
    out = tmp_path / "job"
    said = f"^folder is {re.escape(str(out))}, into which another process is drawing; allowed: another"
    with locked(out), pytest.raises(ValueError, match=said):
        draw(out)
    assert list(out.iterdir()) == []
    assert draw(out).removed == 0
    (out / "grid.png").write_bytes(b"of images that will be gone")
    assert draw(out, seeds=SEEDS[:3], class_labels=1).removed == len(SEEDS)
    assert not (out / "grid.png").exists()


def test_settings_say_the_class_of_each_image(tmp_path):
    draw(tmp_path, class_labels=None)
    assert json.loads((tmp_path / "settings.json").read_text())["classes"] == engine.noise.uniform_int(SEEDS, 4)
