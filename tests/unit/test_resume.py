"""Jobs interrupted, torn, out of disk, and resumed: always the bytes of the undisturbed one."""

import errno
import os
import re

import pytest
import torch

import engine
from engine import Sampler
from engine.guidance import ClassifierGuidance
from engine.outputs import FORMATS
from engine.outputs.archive import Archive
from engine.outputs.base import PARTS, SUMS
from engine.outputs.png_folder import PngFolder
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
            with pytest.raises(ValueError, match="guided is"):
                draw(folder, make(guidance=ClassifierGuidance(0.5, gradient=other)), resume=True)


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
    with pytest.raises(ValueError, match=r"plan is .*table"):
        draw(tmp_path, make(sampler=Plain(3)), resume=True)


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
