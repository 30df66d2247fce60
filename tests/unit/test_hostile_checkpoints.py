"""Hostile checkpoints: never executed, one clear error, memory and time bounded by the size of the file."""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine
from tests.edm_layout import EasyDict, Record, dump
from tests.fuzz.make_seeds import NETWORK, SEEDS, Calls, saved, small_record
from tests.fuzz.mutate import splice

SAYS = {"img_resolution": 8, "class_name": "VEPrecond", "resample_filter": [1, 1], "num_head_channels": 64}
REBUILD = torch._utils._rebuild_tensor_v2


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What torch imports and keeps when it first builds a network is not a file's doing."""
    engine.load(SEEDS / "edm-whole.pkl")


def refused(path: Path, data: bytes) -> str:
    """The one line with which the file is refused; fails if it took memory or time that its size does not explain."""
    path.write_bytes(data)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (callers compare the message)
            engine.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e7 + 40 * len(data), f"{peak / 1e6:.0f} MB"
    assert time.perf_counter() - started < 10
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def placed(call: object) -> dict[str, bytes]:
    """A call wherever a file may have one: in a pickle, in a tensor's bytes, in both formats of torch.save."""
    record = small_record()
    record["ema"].meta["state"]["_buffers"] = {"x": call}
    inside = Calls(torch.storage._load_from_bytes, pickle.dumps(call, protocol=2))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/data.pkl", pickle.dumps(call, protocol=2))
    legacy = saved({}, legacy=True)
    plain = pickle.dumps({}, protocol=2)
    assert legacy.count(plain) == 1
    return {
        "top": dump(call),
        "deep": dump(record),
        "inside": dump({"ema": inside}),
        "zip": archive.getvalue(),
        "legacy": legacy.replace(plain, pickle.dumps(call, protocol=2)),
    }


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("posix.system", lambda target: Calls(os.system, f"touch {target}")),
        ("eval", lambda target: Calls(eval, f"open({str(target)!r}, 'w')")),
        ("getattr", lambda target: Calls(Calls(getattr, Calls(__import__, "os"), "system"), f"touch {target}")),
        ("torch.serialization.load", lambda target: Calls(torch.load, str(target))),
        ("torch._utils._rebuild_wrapper_subclass", lambda target: Calls(torch._utils._rebuild_wrapper_subclass, 1)),
        ("torch.FloatTensor", lambda target: Calls(torch.FloatTensor, 10**12)),
        ("bytearray", lambda target: Calls(bytearray, 10**12)),
        ("numpy", lambda target: torch.zeros(2).numpy()),
    ],
)
def test_what_a_file_calls_is_never_executed(tmp_path, name, call):
    target = tmp_path / "executed"
    for data in placed(call(target)).values():
        message = refused(tmp_path / "checkpoint", data)
        assert "not executed" in message
        assert name.split(".")[0] in message
    assert not target.exists()


@pytest.mark.parametrize("value", [os.system, eval, "a.b", 7])
def test_names_are_refused_where_they_are_only_named(tmp_path, value):
    message = refused(tmp_path / "x.pkl", dump(value))
    assert ("not executed" in message) == callable(value)


LONG = 10**12


def storage_of(numel: int) -> torch.storage.TypedStorage:
    untyped = torch.zeros(numel).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=torch.float32, _internal=True)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "message"),
    [
        (0, (LONG,), (1,), f"a tensor of {LONG} elements reaches beyond its storage of 4"),
        (0, (LONG,), (0,), f"a tensor of {LONG} elements reaches beyond its storage of 4"),
        (0, (2**40, 2**40), (0, 0), "elements reaches beyond its storage of 4"),
        (0, (2, 2), (1, 3), "a tensor of 4 elements reaches beyond its storage of 4"),
        (3, (2,), (1,), "a tensor of 2 elements reaches beyond its storage of 4"),
        (0, (-1,), (1,), "a tensor's size is not an integer from 0"),
        (-1, (1,), (1,), "a tensor's offset is not an integer from 0"),
        (0, (2**70,), (1,), "a tensor's size is not an integer from 0"),
        (0, (1,), (1, 1), "a tensor has 1 sizes and 2 strides"),
        (0, (1,) * 9, (1,) * 9, "is not a tuple of at most 8"),
        (0, ("a",), (1,), "a tensor's size is not an integer"),
    ],
)
def test_absurd_tensors(tmp_path, offset, size, stride, message):
    call = Calls(REBUILD, storage_of(4), offset, size, stride, False, OrderedDict())
    assert message in refused(tmp_path / "x.pkl", dump({"ema": call}))


def test_storages_that_claim_more_than_the_file(tmp_path):
    legacy = saved(torch.zeros(4), legacy=True)
    numel = b"K\x04"  # BININT1 4, as the persistent id has it
    at = legacy.index(numel, legacy.index(b"FloatStorage"))
    larger = legacy[:at] + b"J" + struct.pack("<i", 2**30) + legacy[at + 2 :]
    assert "ends after the file" in refused(tmp_path / "x.pt", larger)
    huge = legacy.replace(struct.pack("<q", 4), struct.pack("<q", 2**60))
    assert "a storage of 4 elements has 1152921504606846976" in refused(tmp_path / "x.pt", huge)
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(4)))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = records["archive/data.pkl"]
    records["archive/data.pkl"] = pickled.replace(b"K\x04tq", b"K\x05tq")
    assert records["archive/data.pkl"] != pickled
    assert "the storage '0' is not there in its 20 bytes" in refused(tmp_path / "x.pt", zipped(records))


def test_tensors_that_share_a_storage_many_times(tmp_path):
    storage = torch.zeros(10_000)
    shared = {str(i): storage.view(-1)[:] for i in range(1000)}
    assert "its tensors claim more than the" in refused(tmp_path / "x.pt", saved(shared))


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return data.getvalue()


def test_zip_bombs(tmp_path):
    pickled = pickle.dumps({}, protocol=2)
    bomb = zipped({"a/data.pkl": pickled, "a/data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    assert "it has compressed records, which torch.save does not write" in refused(tmp_path / "x.pt", bomb)
    embedded = dump({"ema": Calls(torch.storage._load_from_bytes, bomb)})
    assert "it has compressed records" in refused(tmp_path / "x.pkl", embedded)
    stored = zipped({"a/data.pkl": pickled, "a/data/0": bytes(1000)})
    claims = stored.replace(struct.pack("<II", 1000, 1000), struct.pack("<II", 1000, 2**31))
    assert claims != stored
    assert "its records claim more than the" in refused(tmp_path / "x.pt", claims)
    assert "without one NAME/data.pkl" in refused(tmp_path / "x.pt", zipped({"a/b": b""}))


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


TEXT = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00"  # a string in memo slot 0
NONES = b"(" + b"N" * 50_000 + b"tq\x00"  # a tuple of 50,000 in memo slot 0
DEVICES = opcodes(NONES, b"ctorch\ndevice\nq\x01", b"(", b"h\x01h\x00R" * 2000, b"t")  # ... that each call copies
PAIRS = b"]q\x00(" + b"K\x01K\x02\x86" * 20_000 + b"e"  # 20,000 pairs in a list in memo slot 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (opcodes(b"K\x01", b"r\xff\xff\xff\xff"), "holds no network"),  # a memo slot far away costs nothing
        (opcodes(b"\x8e" + struct.pack("<Q", 2**62)), "expected 4611686018427387904 bytes in a bytes8"),
        (opcodes(b"X" + struct.pack("<I", 2**32 - 1)), "expected 4294967295 bytes in a unicodestring4"),
        (opcodes(b"(" * 100_000), "a mark where a value belongs"),
        (opcodes(b"]" * 50_000, b"a" * 49_999), "holds no network"),
        (opcodes(b")" + b"\x85" * 50_000, b"}", b"N"), "holds no network"),
        (opcodes(b"}", b")" + b"\x85" * 100_000, b"Ns"), "a key is a tuple"),
        (opcodes(b"K\x012"), "uses the opcode DUP"),
        (opcodes(b"\x82\x01"), "uses the opcode EXT1"),
        (opcodes(b"(ios\nsystem\n"), "uses the opcode INST"),
        (opcodes(b"ctorch\nfloat32\nK\x01\x85R"), "calls 'torch.float32'"),
        (opcodes(b"a"), "its pickle is broken: IndexError"),
        (opcodes(b"h\x07"), "its pickle is broken: KeyError"),
        (opcodes(b"K\x01K\x02a"), "puts items into a int"),
        (opcodes(b"(K\x01d"), "a key without a value"),
        (opcodes(b"K\x01Q"), "a persistent id, which belongs into a file of torch.save"),
        (opcodes(b"\x8c\x02os\x8c\x06\x1b[31m\n\x93"), "names 'os.\\x1b[31m\\n'"),
        (opcodes(b"\x8c\x01a", TEXT, b"\x93"), "names 'a.aaaa"),
        (opcodes(TEXT, b"cposix\nsystem\n"), "names 'posix.system'"),
        (opcodes(TEXT, b"(", b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 500, b"t"), "its containers"),
        (opcodes(PAIRS, b"(", b"ccollections\nOrderedDict\nh\x00\x85R" * 500, b"t"), "its containers claim more"),
        (DEVICES, "2 positional arguments but 50000 were given"),
        (b"\x80\x04", "pickle exhausted before seeing STOP"),
    ],
)  # fmt: skip
def test_opcodes(tmp_path, data, message):
    assert message in refused(tmp_path / "x.pkl", data)


def test_bytes_of_a_tensor_read_again_and_again(tmp_path):
    stored = saved(storage_of(10_000), legacy=True)
    again = b"ctorch.storage\n_load_from_bytes\nh\x00\x85R" * 1000
    data = opcodes(b"B" + struct.pack("<I", len(stored)) + stored + b"q\x00(", again, b"t")
    assert "its tensors claim more than the" in refused(tmp_path / "x.pkl", data)


def doubled(times: int) -> list:
    value: list = [1, 3]
    for _ in range(times):
        value = [value, value]
    return value


def chain(depth: int) -> Record:
    record = Record("Linear", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(depth):
        record = Record("Linear", {"_parameters": {}, "_buffers": {}, "_modules": {"a": record}})
    return record


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_init_kwargs": EasyDict(resample_filter=doubled(60))}, "resample_filter in its config is not a number"),
        ({"_init_kwargs": EasyDict(channel_mult=[1] * 1000)}, "channel_mult in its config is not a number"),
        (
            {"_init_kwargs": EasyDict(NETWORK, num_blocks=10**15)},
            "num_blocks and channel_mult in its config do not fit",
        ),
        ({"_init_kwargs": EasyDict(NETWORK, num_blocks="2")}, "num_blocks is '2'; allowed: an integer"),
        ({"_init_kwargs": EasyDict(NETWORK, model_channels=-4)}, "model_channels in its config is negative"),
        ({"_init_kwargs": EasyDict(NETWORK, model_channels=0.5)}, "model_channels is 0.5; allowed"),
        ({"_init_kwargs": EasyDict(NETWORK, label_dim=2**45)}, "tensors do not fit the config"),
        (
            {"_init_kwargs": EasyDict(img_resolution=4, M=10**15), "_init_args": ()},
            "M is 1000000000000000",
        ),
        ({"_init_kwargs": {1: 2}}, "arguments that it does not have"),
        ({"_init_args": (1,) * 100}, "arguments that it does not have"),
        ({"_modules": {"a": chain(20)}}, "lies too deep"),
        ({"_modules": {"a" * 101: chain(0)}}, "has no _modules by name"),
        ({"_modules": {"a": 3}}, "module a is not a module"),
        ({"_parameters": {"a": 3}}, "tensor a is a int"),
        ({"_parameters": None}, "has no _parameters by name"),
    ],
)
def test_hostile_records(tmp_path, state, message):
    data = small_record()
    data["ema"].meta["state"].update(state)
    assert message in refused(tmp_path / "x.pkl", dump(data))


def test_levels_of_iddpm_are_not_taken_on_trust(tmp_path):
    data = small_record()
    data["ema"].meta["class_name"] = "iDDPMPrecond"
    data["ema"].meta["state"]["_init_kwargs"]["M"] = 10**12
    assert "no buffer u of M + 1 noise levels" in refused(tmp_path / "x.pkl", dump(data))


@pytest.mark.parametrize("seed", sorted(SEEDS.iterdir()), ids=lambda path: path.name)
def test_seeds_of_the_fuzzers(seed):
    for config in (None, SAYS):
        load_or_refuse(seed, config)


@pytest.mark.parametrize("name", ["edm-4.pkl", "edm-5-zip.pkl", "adm.pt", "adm-legacy.pt", "native.safetensors"])
def test_every_truncation_is_refused(tmp_path, name):
    data = (SEEDS / name).read_bytes()
    path = tmp_path / name
    for length in range(0, len(data), len(data) // 50):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=name):
            engine.load(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files(tmp_path, data):
    """Bit flips, cuts, bytes and opcodes of one file in another."""
    seeds = [path.read_bytes() for path in sorted(SEEDS.iterdir()) if path.stat().st_size < 10_000]
    changed = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "opcodes", "splice", "insert"]))
        if kind == "flip" and changed:
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[at : at + data.draw(st.integers(1, 40))]
        elif kind == "opcodes":
            changed[:] = splice(bytes(changed), data.draw(st.sampled_from(seeds)), data.draw(st.randoms()))
        elif kind == "splice":
            other = data.draw(st.sampled_from(seeds))
            begin = data.draw(st.integers(0, len(other) - 1))
            changed[at:at] = other[begin : begin + data.draw(st.integers(1, 200))]
        else:
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=12))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(changed))
    load_or_refuse(path, data.draw(st.sampled_from([None, SAYS])))


def load_or_refuse(path: Path, config: dict | None) -> None:
    message = str(path)
    try:
        loaded = engine.load(path, config=config)
    except ValueError as error:
        message = str(error)
    else:
        assert isinstance(loaded, engine.Denoiser)
    assert str(path) in message
    assert len(message.splitlines()) == 1
