"""Batches written by a thread of their own while others are drawn; and what Ctrl-C leaves."""

import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from engine import drawing
from engine.writing import Writing
from tests.helpers import tree
from tests.unit.jobs import draw, make

BATCH = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)


class Slow:
    """An output whose disk waits to be let on."""

    def __init__(self):
        self.go, self.begun, self.written = threading.Semaphore(0), [], []

    def write(self, number, images):
        self.begun.append(number)
        assert self.go.acquire(timeout=30)
        if number == 13:
            raise OSError("disk full")
        self.written.append((number, len(images)))


def test_batches_wait_up_to_a_number_and_come_in_order():
    output = Slow()
    with Writing(output, 2) as writing:
        assert list(writing.add(7, BATCH)) == []
        assert list(writing.add(3, BATCH[:1])) == []
        output.go.release()
        first = list(writing.add(5, BATCH))  # the third waits for the first to be safe
        assert first[0] == (7, 3)
        output.go.release()
        output.go.release()
        assert [*first, *writing.rest()] == [(7, 3), (3, 1), (5, 3)]
    assert output.written == [(7, 3), (3, 1), (5, 3)]


def test_none_may_wait():
    output = Slow()
    output.go.release()
    with Writing(output, 0) as writing:
        assert list(writing.add(1, BATCH)) == [(1, 3)]


def test_an_error_of_the_disk_comes_to_the_caller_and_what_waits_is_not_begun():
    output = Slow()

    def fill():
        with Writing(output, 2) as writing:
            try:
                for number in (13, 14, 15):
                    list(writing.add(number, BATCH))
            finally:
                threading.Timer(0.2, output.go.release).start()  # of the next, which leaving waits for if it was begun

    threading.Timer(0.1, output.go.release).start()
    with pytest.raises(OSError, match="disk full"):
        fill()
    assert output.begun in ([13], [13, 14])  # the next may have been taken before the error was read; not the third
    assert output.written == [(14, 3)][: len(output.begun) - 1]


@pytest.mark.parametrize("format", ["png", "zip"])
def test_a_job_written_beside_is_the_job(monkeypatch, tmp_path, format):
    draw(tmp_path / "plain", format=format)
    monkeypatch.setattr(drawing, "Writing", lambda output, waiting: Writing(output, 2))
    drawn = draw(tmp_path / "beside", make(batch_size=5), format=format)
    assert (drawn.drawn, drawn.last) == (12, True)
    assert tree(tmp_path / "beside") == tree(tmp_path / "plain")


def test_ctrl_c_leaves_whole_files_and_a_job_that_goes_on(tmp_path):
    command = [sys.executable, "-m", "engine", "sample", "--model", "fashion-mnist", "--seeds", "0-199", "--steps", "3"]
    command += ["--batch", "4", "--threads", "1", "--out", str(tmp_path)]
    # Where the tests run in a shell's background, what they start would ignore Ctrl-C.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.png"))) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.splitlines()[-1] == "interrupted"
    there = sorted(path.name for path in tmp_path.glob("*.png"))
    assert 8 <= len(there) < 200
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kept = len(there) - len(there) % 4
    assert f"{200 - kept} images in" in done.stdout
