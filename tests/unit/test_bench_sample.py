"""The benchmark of whole sampling: that the loops beside the engine draw the same images, and what it writes."""

import itertools
import json
import signal
import time

import pytest
import torch

import engine
from bench import bench_sample, compiled, device_rows, harness, rounds, targets, user_loops
from bench.variants import Situation, variants
from engine import reference
from engine.preconditioning import EDM
from tests.helpers import small_unet, wavy

SHAPE = (3, 8, 6)
STEPS = 7
LATENTS = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
DENOISER = wavy(EDM(), SHAPE, label_dim=4)
LABELS = torch.eye(4)[[0, 3, 1]]


@torch.no_grad()
def test_the_users_loop_is_algorithm_2_to_the_bit():
    found = user_loops.heun(DENOISER, LATENTS, LABELS, STEPS)
    expected = reference.algorithm2(
        lambda x, sigma: DENOISER(x, sigma, LABELS), EDM(), LATENTS, lambda i: torch.zeros(()), steps=STEPS
    )
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)


def test_the_users_loop_draws_the_engines_images_to_the_bit():
    sampler = engine.samplers.edm(steps=STEPS)
    drawn = engine.sample(
        DENOISER, latents=LATENTS, class_labels=[0, 3, 1], sampler=sampler, output_dtype=torch.float64
    )
    assert torch.equal(user_loops.heun(DENOISER, LATENTS, LABELS, STEPS), drawn)
    assert torch.equal(user_loops.plain(DENOISER, LATENTS, LABELS, STEPS), engine.to_uint8(drawn))


def test_k_diffusions_loop_draws_the_same_images():
    loop = _loop(user_loops.k_diffusion_loop)
    difference = loop(DENOISER, LATENTS.float(), LABELS, STEPS).int() - _plain(STEPS)
    assert difference.abs().max() <= 1  # state float32


def test_diffusers_loop_converges_to_the_same_images():
    loop = _loop(user_loops.diffusers_loop)
    errors = [
        (loop(DENOISER, LATENTS.float(), LABELS, steps).int() - _plain(100)).abs().float().mean() for steps in (8, 80)
    ]
    assert errors[1] < 1 < 5 * errors[1] < errors[0]  # by Euler, so at first order


def _plain(steps):
    return user_loops.plain(DENOISER, LATENTS, LABELS, steps).int()


def _loop(make):
    try:
        return make()
    except user_loops.CannotRun as why:
        pytest.skip(f"{why} (make test)")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The results folder, for a benchmark that finds a tiny network."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench_sample, "load", lambda name: small_unet(label_dim=2))
    return tmp_path / "results"


TINY = ["--device", "cpu", "--network", "tiny", "--steps", "2", "--rounds", "1", "--seconds", "0"]


def test_main_writes_every_variant(results, capsys):
    bench_sample.main([*TINY, "--batch", "1", "2", "--note", "Said so."])
    (path,) = results.glob("*.json")
    record = json.loads(path.read_text())
    assert record["notes"].endswith("Said so.")
    assert {"device", "threads", "torch", "python", "commit", "date"} <= set(record["provenance"])
    assert not path.name.startswith("sample")
    assert path.stem.endswith(record["provenance"]["date"])
    names = ["engine", "eager float32", "eager bfloat16, channels_last", "k-diffusion", "diffusers"]
    assert [(row["batch"], row["variant"]) for row in record["rows"]] == list(itertools.product([1, 2], names))
    for row in record["rows"]:
        assert row["NFE"] == 3
        assert (row["images/s"] == "") == bool(row["note"])
        if not row["note"]:
            assert row["images/s"] == pytest.approx(1e3 / row["ms an image"])
            assert row["p20"] == row["ms an image"] == row["p80"]
            assert row["TFLOP/s"] > 0
            assert row["CPU ms"] > 0
    assert [row["times engine"] for row in record["rows"] if row["variant"] == "engine"] == [1, 1]
    table = path.with_suffix(".md").read_text()
    assert table.count("| tiny |") == 10
    assert table in capsys.readouterr().out
    assert "Targets" not in table  # of a GPU


def test_what_cannot_run_is_listed_with_the_reason(results, monkeypatch):
    monkeypatch.setattr("bench.variants.k_diffusion_loop", lambda: _raise(user_loops.CannotRun("not installed")))
    monkeypatch.setattr("bench.variants.diffusers_loop", lambda: _raise(RuntimeError("broken\nin two lines")))
    bench_sample.main([*TINY, "--batch", "1", "--longest", "1e-9"])
    rows = json.loads(next(results.glob("*.json")).read_text())["rows"]
    notes = {row["variant"]: row["note"] for row in rows}
    assert (notes["engine"], notes["k-diffusion"]) == ("", "not installed")
    assert notes["diffusers"] == "RuntimeError: broken"
    assert notes["eager float32"].startswith("a batch would take")
    assert notes["eager float32"].endswith("s, going by 100% of it; --longest is 1e-09")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_and_shows_what_it_measured(results, monkeypatch, capsys, tmp_path, number):
    """In the folder asked for. The signal comes twice, as `timeout` sends it, the second while files are written."""
    compared, written = bench_sample.Bench.compare, bench_sample.write

    def once(self, situation, listed):
        return compared(self, situation, listed) if situation.batch == 1 else signal.raise_signal(number)

    def again(*arguments, show, **named):
        signal.raise_signal(number) if show else None
        written(*arguments, show=show, **named)

    monkeypatch.setattr(bench_sample.Bench, "compare", once)
    monkeypatch.setattr(bench_sample, "write", again)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        bench_sample.main(
            [*TINY, "--batch", "1", "2", "--variant", "eager float32", "--results", str(tmp_path / "other")]
        )
    rows = json.loads(next((tmp_path / "other").glob("*.json")).read_text())["rows"]
    assert [(row["batch"], row["variant"]) for row in rows] == [(1, "engine"), (1, "eager float32")]
    assert capsys.readouterr().out.count("| tiny |") == 2
    assert not results.exists()
    assert signal.getsignal(number) == before


def test_compiling_ends_when_its_time_is_over(results, monkeypatch):
    """In the process of its own, which is this one here; a run whose time has passed does not begin it."""
    monkeypatch.setattr("bench.variants.by_compile", lambda situation, mode: time.sleep(60))
    monkeypatch.setattr(compiled, "run", lambda arguments, seconds: bench_sample.main(arguments))
    options = [*TINY, "--batch", "1", "--compile", "--variant", "compile", "--compile-seconds", "1"]
    bench_sample.main(options)
    assert _notes(results) == ["", "not compiled in 1 s"]
    bench_sample.main([*options, "--minutes", "0"])
    assert _notes(results) == ["", "not begun: the 0 minutes of this run had passed"]
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_process_that_compiles_and_fails_is_told(results, monkeypatch):
    """No process can be given the tiny network: it ends with an error, or after its time."""
    options = [*TINY, "--batch", "1", "--compile", "--variant", "compile"]
    bench_sample.main(options)
    assert _notes(results) == ["", "its process ended with 1"]
    monkeypatch.setattr(compiled, "_BESIDE", -899.9)
    bench_sample.main(options)
    assert _notes(results) == ["", "its process had not ended after 0 s"]


def _notes(results):
    return [row["note"] for row in json.loads(next(results.glob("*.json")).read_text())["rows"]]


def _raise(error):
    raise error


def test_an_engine_that_fails_does_not_end_the_run(results, monkeypatch):
    monkeypatch.setattr("bench.variants.by_engine", lambda *_: _raise(torch.OutOfMemoryError("too large")))
    bench_sample.main([*TINY, "--batch", "1", "--variant", "eager float32"])
    first, second = json.loads(next(results.glob("*.json")).read_text())["rows"]
    assert (first["images/s"], first["note"]) == ("", "OutOfMemoryError: too large")
    assert second["images/s"] > 0
    assert second["times engine"] == second["note"] == ""


def test_rows_of_the_device(monkeypatch):
    """With a made-up clock, and a CPU's operations for a GPU's kernels."""
    round_ = (2.0, 14.0, 1.5)  # a call, a stream of eight batches, the network's evaluations alone
    clock = iter([9.0, 9.0, 9.0, *round_, *round_, 2.5, 9.0, 9.0, 9.0, *round_, *round_])
    monkeypatch.setattr(device_rows, "_seconds", lambda call, device: next(clock))
    monkeypatch.setattr(device_rows, "network_alone", lambda situation, prepared: None)
    situation = Situation("cifar10", small_unet(label_dim=2), 2, torch.float32, 2, torch.device("cpu"))
    prepared = variants(situation, compiled=False)[0].prepare()
    with_job, without = (device_rows.row(situation, prepared, 9, 1.0, images) for images in (5, 0))
    assert list(with_job) == list(without)
    assert [with_job[f"ms{of}"] for of in (" a batch", " a batch, streamed", ", network alone")] == [2000, 1750, 1500]
    assert (with_job[targets.OUTSIDE], with_job["outside, streamed %"]) == (25, pytest.approx(100 / 7))
    assert (with_job["job images"], with_job["job images/s"], with_job["profiled images"]) == (5, 2, 5)
    assert 0 < with_job[targets.BUSY] <= 100
    judged = {row["what"]: row["measured"] for row in targets.judged([], [without, with_job | {"batch": 512}])}
    assert judged["GPU busy over a job of 10,000 images, or of --job"] == with_job[targets.BUSY]
    assert judged["everything but the network's kernels, batch 512"] == with_job[targets.OUTSIDE]
    assert judged["everything but the network's kernels, batch 1"] == ""


def test_variants_of_a_gpu():
    """Their names alone: nothing is prepared."""
    situation = Situation("tiny", small_unet(), 4, torch.float16, 18, torch.device("cuda"))
    assert (situation.nfe, situation.classes) == (35, None)
    assert [(v.name, v.compiles) for v in variants(situation, compiled=True)] == [
        ("engine", False),
        ("engine, step graph", False),
        ("engine, no graph", False),
        ("eager float32", False),
        ("eager float16, channels_last", False),
        ("k-diffusion", False),
        ("diffusers", False),
        ("compile reduce-overhead", True),
        ("compile max-autotune", True),
    ]


def test_situations_are_in_the_order_asked_for(results):
    given = ["--network", "cifar10:8,1", "imagenet64:64", "cifar10", "--batch", "8", "2", "--device", "cpu"]
    found = bench_sample.situations(bench_sample.arguments(given), torch.device("cpu"))
    assert [str(situation) for situation in found] == [
        "cifar10 bfloat16 batch 8",
        "cifar10 bfloat16 batch 1",
        "imagenet64 bfloat16 batch 64",
        "cifar10 bfloat16 batch 2",
    ]
    assert [situation.nfe for situation in found] == [35, 35, 79, 35]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a call says so."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(rounds.time, "process_time", lambda: 2 * now[0])
    return now


def test_rounds_are_interleaved_and_slow_calls_have_fewer(clock):
    turns = []

    def call(name, seconds):
        def work():
            turns.append(name)
            clock[0] += seconds

        return work

    calls = {"quick": call("quick", 0.125), "slow": call("slow", 2.0)}
    found, failed = rounds.interleaved(calls, rounds=3, seconds=3.0)
    assert found == {"quick": [(0.125, 0.25)] * 3, "slow": [(2.0, 4.0)]}
    assert turns == ["quick", "slow", *["quick"] * 16]  # a third of its seconds in each of its further turns
    assert not failed


def test_a_call_that_fails_has_no_times_and_no_further_turn(clock):
    calls = []

    def call():
        calls.append("fails")
        clock[0] += 1
        if len(calls) == 2:
            raise RuntimeError("in its second turn")

    def works():
        clock[0] += 1

    found, failed = rounds.interleaved({"fails": call, "works": works}, rounds=3, seconds=3)
    assert (found, str(failed["fails"]), len(calls)) == ({"works": [(1.0, 2.0)] * 3}, "in its second turn", 2)


ROW = {"network": "cifar10", "dtype": "bfloat16", "batch": 512, "NFE": 35, "variant": "engine"}
DEVICE_ROW = {"network": "cifar10", "batch": 512, targets.OUTSIDE: 1.0, targets.BUSY: 97.9}


def test_targets_are_judged_by_numbers():
    rows = [
        ROW | {"images/s": 320.0, "ms an image": 3.1},
        ROW | {"images/s": 900.0, "ms an image": 1.1, "dtype": "float32"},  # not half precision
        ROW | {"images/s": 900.0, "ms an image": 1.1, "variant": "engine, no graph"},
        ROW | {"images/s": 55.0, "ms an image": 18.1, "batch": 1},
        ROW | {"images/s": "", "ms an image": "", "batch": 1},
        ROW | {"images/s": 27.9, "ms an image": 35.8, "batch": 64, "network": "imagenet64", "NFE": 79},
        ROW | {"images/s": 28.1, "ms an image": 35.6, "batch": 8, "network": "imagenet64", "NFE": 79},
        ROW | {"images/s": 80.0, "ms an image": 12.5, "batch": 8, "network": "imagenet64", "NFE": 35},
    ]
    verdicts = [(row["measured"], row["verdict"]) for row in targets.judged(rows, [DEVICE_ROW])]
    assert verdicts == [
        (320.0, "met"),
        (18.1, "not met"),
        (1.0, "met"),
        ("", "not measured"),
        (97.9, "not met"),
        (28.1, "met"),
    ]
    assert {row["verdict"] for row in targets.judged([], [])} == {"not measured"}


def test_markdown_has_sections_and_large_numbers():
    record = {
        "benchmark": "b", "provenance": {"device": "d"}, "notes": "n",
        "rows": [{"x": 1234.5, "y": 0.12345, "z": "a|b"}], "sections": {"More": [{"k": 999.0}]},
    }  # fmt: skip
    text = harness.markdown(record)
    assert "| 1234 | 0.123 | a\\|b |" in text
    assert text.endswith("## More\n\n| k |\n| --- |\n| 999 |\n")
    assert "nothing measured" in harness.markdown(record | {"rows": []})
