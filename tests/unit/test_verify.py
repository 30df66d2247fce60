"""Verification goes red: whatever is wrong on purpose here is found, and named."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

import engine
from engine import backends, reference
from engine.backends import BACKENDS, REFERENCE, Backend
from engine.graphs import Graph
from engine.preconditioning import EDM
from engine.verify import checks, golden
from engine.verify.checks import Request, captured, verify
from engine.verify.compare import Comparison, compare
from engine.verify.normals import normal_comparison, philox_comparison
from tests.helpers import small_unet, wavy
from tests.unit.test_cli import run

CPU = torch.device("cpu")
F32 = torch.float32


def off_by_an_ulp(F, state, k, G=None):
    """The reference, but for the last bit of one value."""
    reference.advance(F, state, k, G)
    x = state.x.view(-1)
    x[3] = torch.nextafter(x[3], x.new_tensor(torch.inf))


WRONG = Backend("wrong", off_by_an_ulp, REFERENCE.not_supported_reasons)


@pytest.fixture
def with_wrong_backend(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", (WRONG, *BACKENDS))
    monkeypatch.setattr(checks, "BACKENDS", (WRONG, *BACKENDS))


def failures(findings):
    return [f"{f.check}: {f.subject}" for f in findings if f.passed is False]


def test_comparisons_count_bits():
    got = torch.tensor([0.0, 1.0, torch.nan, 3.0, torch.inf])
    assert compare(got, got.clone()) == Comparison(5)
    assert str(compare(got, got.clone())) == "equal to the bit (5 values)"
    other = torch.tensor([-0.0, 1.5, torch.nan, 3.0, torch.inf])
    assert compare(got, other) == Comparison(5, 2, 0.5)
    assert str(compare(got, other)) == "differs: 2 of 5 values, by 0.5 at most"
    assert compare(got, got.flip(0)).largest == math.inf
    assert compare(torch.arange(3), torch.tensor([0, 1, 9])) == Comparison(3, 1, 7)
    assert Comparison(5, 2, 0.5) + Comparison(3, 1, 7.0) == Comparison(8, 3, 7.0)


def test_everything_holds_here():
    request = Request.check("x", wavy(EDM(), label_dim=3), [F32, torch.bfloat16])
    found = list(verify(request))
    assert not failures(found)
    assert {f.check for f in found} >= {"Philox", "backend", "noise", "captured", "batch 1 and 5", "golden samples"}
    can_run = [b for b in BACKENDS if not b.not_supported_reasons(CPU, torch.float64)]
    compared = [f for f in found if f.check in ("advance", "samples")]
    assert sum("float32" in f.subject for f in compared) >= 2 * (len(can_run) - 1)
    assert all("equal to the bit" in f.outcome or "cannot run" in f.outcome for f in compared)
    assert [f.outcome for f in found if f.check == "batch 1 and 5"] == ["equal to the bit (720 values)"] * 2
    for f in found:
        assert (f.passed is None) == ("cannot run: " in f.outcome or f.check == "golden samples"), f


def test_a_backend_is_a_record_and_no_more(monkeypatch):
    mine = replace(REFERENCE, name="mine")
    monkeypatch.setattr(backends, "BACKENDS", (mine, *BACKENDS))
    monkeypatch.setattr(checks, "BACKENDS", (mine, *BACKENDS))
    found = list(verify(Request.check("x", wavy(EDM()), [F32], backend="mine")))
    assert not failures(found)
    assert {"noise", "advance", "samples"} <= {f.check for f in found if f.subject.startswith("mine on cpu")}


def test_one_ulp_is_found(with_wrong_backend):
    request = Request.check("x", wavy(EDM()), [F32], backend="wrong")
    found = list(verify(request))
    assert failures(found)[-1] == "samples: wrong on cpu, network float32"
    wrong = [f for f in found if f.check == "advance"]
    assert [f.passed for f in wrong] == [False] * 4
    assert all(f.outcome.startswith("differs: 8 of ") for f in wrong)  # one in each case's x


def test_what_a_check_raises_is_a_finding(monkeypatch):
    def broken(F, state, k, G=None):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    request = Request.check("x", wavy(EDM()), [F32], "reference")
    request = replace(request, backends=(Backend("broken", broken, REFERENCE.not_supported_reasons),))
    found = [f for f in verify(request) if f.check == "advance"]
    assert [f.passed for f in found] == [False] * 4
    assert found[0].outcome == "RuntimeError: no kernel image is available"


def test_wrong_random_numbers_are_found(monkeypatch):
    assert philox_comparison() == Comparison(12)
    assert normal_comparison("reference", CPU) == Comparison(9 * 5 * 3 * 7 * 53)
    plain = engine.noise.normal
    monkeypatch.setattr(engine.noise, "normal", lambda *a, **k: plain(*a, **k).nextafter(torch.tensor(9.0)))
    found = checks.normals(REFERENCE, CPU)
    assert not found.passed
    assert found.outcome.startswith("differs: 50,085 of 50,085 values, by ")
    monkeypatch.setattr(engine.noise, "_mulhilo", lambda m, x: (x, x))
    assert not philox_comparison().equal


def test_batches_fail_only_where_equality_is_promised(monkeypatch):
    found = checks.batches(wavy(EDM()), F32, CPU, promised=True)
    assert (found.passed, found.outcome) == (True, "equal to the bit (720 values)")
    noisy = iter(range(9))
    monkeypatch.setattr(checks, "_draw", lambda *a: torch.full([4], float(next(noisy))))
    assert checks.batches(wavy(EDM()), F32, CPU).passed is None
    assert checks.batches(wavy(EDM()), F32, CPU, promised=True).passed is False


@pytest.fixture(scope="module")
def shipped():
    return engine.load("fashion-mnist")


def edited(denoiser, name, edit):
    other = copy.deepcopy(denoiser)
    with torch.no_grad():
        edit(other.get_parameter(f"model.{name}"))
    return other


LAYER = "enc.16x16_block0.conv1.weight"


def test_golden_samples_catch_weights_and_networks(shipped):
    first, near, bits = golden.golden("fashion-mnist", shipped, (F32,), CPU)
    assert (first.passed, near.passed) == (True, True)
    assert bits.passed in (True, None)  # None on a machine whose bits are not recorded
    flipped = edited(shipped, LAYER, lambda w: w.view(-1)[:1].view(torch.int32).bitwise_xor_(1))
    first, near, _ = golden.golden("fashion-mnist", flipped, (F32,), CPU)
    assert (first.passed, first.outcome, near.passed) == (False, "not those that shipped", True)
    first, near, bits = golden.golden("fashion-mnist", edited(shipped, LAYER, lambda w: w.zero_()), (F32,), CPU)
    assert (first.passed, near.passed) == (False, False)
    assert bits.passed in (False, None)


def test_golden_bits_are_recorded_for_a_machine(shipped, monkeypatch, tmp_path):
    file = tmp_path / "golden.json"
    file.write_text(golden.FILE.read_text())
    monkeypatch.setattr(golden, "FILE", file)
    monkeypatch.setattr(golden, "_STEPS", 2)
    monkeypatch.setattr(golden, "machine", lambda device: f"a new machine, code {golden.code()}")
    monkeypatch.setitem(golden._NEAR, F32, 255.0)
    *_, bits = golden.golden("fashion-mnist", shipped, (F32,), CPU)
    assert bits.passed is None
    here = golden.machine(CPU)
    assert bits.outcome == f"no golden bits for {here}; `edm-engine verify --record` adds them"
    entries = json.loads(file.read_text())
    entries["fashion-mnist"]["bits"]["a machine, code of before"] = {"float32": "0" * 64}
    file.write_text(json.dumps(entries))
    assert golden.record("fashion-mnist", shipped, (F32,), CPU) == [f"fashion-mnist, float32, {here}"]
    *_, bits = golden.golden("fashion-mnist", shipped, (F32,), CPU)
    assert (bits.passed, bits.outcome) == (True, "equal to the bit (4,096 values)")
    entries = json.loads(file.read_text())
    assert "a machine, code of before" not in entries["fashion-mnist"]["bits"]
    entries["fashion-mnist"]["bits"][here]["float32"] = "0" * 64
    file.write_text(json.dumps(entries))
    *_, bits = golden.golden("fashion-mnist", shipped, (F32,), CPU)
    assert (bits.passed, bits.outcome) == (False, "other bits")
    monkeypatch.setitem(golden._NEAR, F32, 0.0)
    for model, denoiser, message in [
        ("fashion-mnist", shipped, "largest mean difference .* not recorded"),
        ("fashion-mnist", edited(shipped, LAYER, lambda w: w.zero_()), "the weights of 'fashion-mnist' are not those"),
        ("mine.safetensors", shipped, "model is 'mine.safetensors'; only shipped networks have golden samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            golden.record(model, denoiser, (F32,), CPU)
    assert json.loads(file.read_text()) == entries
    file.unlink()
    monkeypatch.setitem(golden._NEAR, F32, 0.01)
    golden.record("fashion-mnist", shipped, (F32,), CPU)
    assert not failures(golden.golden("fashion-mnist", shipped, (F32,), CPU))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_self_check_of_a_sound_engine(dtype):
    for denoiser in (small_unet(), wavy(EDM(), label_dim=3)):
        for state_dtype in (torch.float64, F32):
            engine.Engine(denoiser, dtype=dtype, state_dtype=state_dtype).self_check()


def test_self_check_leaves_everything_alone(shipped):
    before = golden.weights_digest(shipped)
    prepared = engine.Engine(shipped, dtype=torch.bfloat16)
    images = prepared.sample(seeds=[1], class_labels=2, sampler=engine.samplers.edm(2))
    prepared.self_check()
    assert golden.weights_digest(shipped) == before
    assert torch.equal(prepared.sample(seeds=[1], class_labels=2, sampler=engine.samplers.edm(2)), images)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_self_check_finds_one_flipped_bit(dtype):
    prepared = engine.Engine(small_unet(), dtype=dtype)
    for parameter in prepared.denoiser.parameters():
        last = parameter.data[tuple(-1 for _ in parameter.shape)]
        last = last.view(torch.int32 if parameter.element_size() == 4 else torch.int16)
        last.bitwise_xor_(1)
        with pytest.raises(engine.SelfCheckError, match=r"^weights: the bits in memory are not those"):
            prepared.self_check()
        last.bitwise_xor_(1)
    prepared.self_check()


def test_self_check_finds_one_ulp_in_the_fused_step():
    prepared = engine.Engine(small_unet())
    prepared.backend = WRONG
    with pytest.raises(engine.SelfCheckError, match=r"^advance: backend 'wrong' against the reference differs: 2 of "):
        prepared.self_check()


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16], ids=str)
def test_self_check_finds_a_wrong_operation_of_the_network(dtype, shipped):
    prepared = engine.Engine(shipped, dtype=dtype)
    prepared.denoiser.remembered = None  # what is remembered would be the right operation
    norm = prepared.denoiser.model.get_submodule("enc.16x16_block0.norm0")
    right, factor = norm.ops, 1.1 if dtype == F32 else 3.0  # half precision hides smaller mistakes in one layer
    wrong = {
        "network: in .* it is .* of its output's size from float32": lambda y: y * factor,
        "network: its output in .* is not finite": lambda y: y / 0,
    }
    for message, change in wrong.items():

        def operation(*arguments, change=change, **around):
            y, past = right.group_norm(*arguments, **around)
            return change(y), past

        norm.ops = replace(right, group_norm=operation)
        with pytest.raises(engine.SelfCheckError, match=message):
            prepared.self_check()
    norm.ops = right
    prepared.self_check()


def test_command(monkeypatch, tmp_path, capsys, with_wrong_backend):
    network = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    kind = {"class_name": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 8, "img_channels": 3}
    model = tmp_path / "model.safetensors"
    engine.save(engine.Denoiser.from_config(kind | network | {"label_dim": 0}), model)
    command = ["verify", "--model", model, "--dtype", "float32"]
    assert run(monkeypatch, *command, "--backend", "reference") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "all that is promised holds here"
    assert "golden samples        model.safetensors               none of this network; there are of: fashion" in said
    assert run(monkeypatch, *command, "--backend", "wrong") == 1
    said = capsys.readouterr().out
    assert "FAIL advance               wrong on cpu, network float32   differs: 8 of " in said
    assert said.splitlines()[-1].endswith(" failed")
    cannot = next(b for b in BACKENDS if b.not_supported_reasons(CPU, torch.float64))
    assert run(monkeypatch, *command, "--backend", cannot.name, "--device", "cpu") == 1
    assert f"FAIL backend               {cannot.name:<32}cannot run: " in capsys.readouterr().out
    for option, value in [("--backend", "tpu"), ("--device", "tpu"), ("--record", None)]:
        given = [option] if value is None else [option, value]
        assert run(monkeypatch, *command, *given) == 2
        refused = tuple(f"edm-engine: {name} is" for name in ("backend", "device", "model"))
        assert capsys.readouterr().err.startswith(refused)


def test_captured_loops_are_compared_with_eager_ones(monkeypatch, replay):
    found = captured(wavy(EDM(), label_dim=3), F32, CPU)
    assert found.passed
    assert "equal to the bit" in found.outcome
    assert replay.replayed > 0
    monkeypatch.setattr(type(replay), "capture", lambda self, work: Graph(lambda: None))  # replays nothing
    assert captured(wavy(EDM(), label_dim=3), F32, CPU).passed is False
