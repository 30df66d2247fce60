"""Every Triton kernel compiled ahead of time, without a GPU, and its PTX read: what the promise of equal bits and the
stated bytes per element rest on. The launchers run on CPU tensors with the kernel replaced by a recorder, so what is
compiled is what a launch would ask for: its constants, its alignments, its options.
"""

import re
from collections import Counter

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from engine.kernels import advance, guide_scale, philox  # noqa: E402

from engine.backends import triton as backend  # noqa: E402
from engine.plan import Op  # noqa: E402
from engine.verify.cases import Case  # noqa: E402
from tests.ptx import accesses, compiled, launches, resources  # noqa: E402

if triton.knobs.runtime.interpret:
    pytest.skip("Triton's interpreter is on: there is nothing to compile", allow_module_level=True)

FLAT, LAST = torch.contiguous_format, torch.channels_last
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def launched(monkeypatch):
    """launched(module, kernel name, call) -> the launch that call() makes."""
    return lambda module, name, call: launches(monkeypatch, {module, advance, guide_scale}, call)[name]


def check_arithmetic(ptx):
    """Only correctly rounded operations, none contracted, none that flushes or approximates."""
    code = re.sub(r"//.*", "", ptx)
    assert not re.findall(r"\bfma\.|\bmad\.\w*\.?f|\.ftz|\.approx|\bdiv\.full|\bex2|\blg2|\bsin\.|\bcos\.", code)
    # An add or mul without .rn may be fused by ptxas.
    rounded = re.findall(r"\b(?:add|sub|mul|div|sqrt)(?:\.\w+)?\.f(?:32|64)\b", code)
    assert rounded
    assert {operation.split(".")[1] for operation in rounded} == {"rn"}
    return Counter(rounded)


def advance_launch(launched, state, net, layout, noise="philox", shape=(3, 32, 32)):
    F, buffers = Case((Op.EULER,) * 2, shape, state, net, layout, noise=noise).build()
    return launched(advance, "_advance_kernel", lambda: backend.advance(F, buffers, 2))


def check_advance(launch, state, net, layout, noise, sm, folder):
    result = compiled(advance._advance_kernel, launch, sm, folder)
    ptx, width = result.asm["ptx"], 16 // state.itemsize
    done = check_arithmetic(ptx)
    assert done[f"div.rn.{'f64' if state == F64 else 'f32'}"] >= 3 * width  # by s, slope_t and s_next
    assert (done["sqrt.rn.f32"] >= width) == (
        noise == "philox"
    )  # Box-Muller: a root for two normals, drawn in two places
    moved = accesses(ptx)
    wide = "v2.b64" if state == F64 else "v4.b32"
    assert moved[f"ld.global.{wide}"] >= 6, moved  # x and the slots: slot 0 of CORRECT, four of LINEAR
    assert moved[f"st.global.{wide}"] >= 4, moved  # x, PREDICT's slope, LINEAR's two slots
    if layout == FLAT:
        piece = {4: "b32", 8: "v2.b32", 16: "v4.b32"}.get(width * net.itemsize)
        piece = "v2.b32" if (width, net) == (2, F32) else piece
        assert moved[f"ld.global.{piece}"] >= 1, moved
        assert moved[f"st.global.{piece}"] >= 1, moved
        assert not any("shared" in access for access in moved), moved  # each thread keeps the elements it read
    used = resources(result.asm["cubin"], folder)
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert used["REG"] <= 64, used  # 1024 threads an SM
    return used


SPECIALISATIONS = [
    (F64, BF16, LAST, "philox", 90),
    (F64, F16, FLAT, "philox", 100),
    (F64, F32, FLAT, "float64", 80),
    (F32, BF16, FLAT, "philox", 90),
    (F32, F32, LAST, "float32", 90),
]


@pytest.mark.parametrize(("state", "net", "layout", "noise", "sm"), SPECIALISATIONS, ids=str)
def test_advance(launched, tmp_path, state, net, layout, noise, sm):
    launch = advance_launch(launched, state, net, layout, noise)
    check_advance(launch, state, net, layout, noise, sm, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("layout", [FLAT, LAST], ids=str)
@pytest.mark.parametrize("net", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("state", [F64, F32], ids=str)
def test_advance_everywhere(launched, tmp_path, state, net, layout, sm):
    for noise in ("philox", "float32", "float64"):
        launch = advance_launch(launched, state, net, layout, noise)
        used = check_advance(launch, state, net, layout, noise, sm, tmp_path)
        print(f"\n{state} {net} {layout} {noise} sm_{sm}: {used}", end="")


def test_advance_of_ragged_samples_compiles(launched, tmp_path):
    """Sizes that allow no wide pieces, a size of 1 that becomes a constant, and no network output."""
    for shape in [(3, 5, 7), (1,)]:
        launch = advance_launch(launched, F64, BF16, LAST, shape=shape)
        check_arithmetic(compiled(advance._advance_kernel, launch, 90, tmp_path).asm["ptx"])
    _, buffers = Case((Op.BEGIN,) * 2, (3, 32, 32), F64, BF16).build()
    launch = launched(advance, "_advance_kernel", lambda: backend.advance(None, buffers, 2))
    check_arithmetic(compiled(advance._advance_kernel, launch, 90, tmp_path).asm["ptx"])


@pytest.mark.parametrize(("net", "layout", "sm"), [(BF16, LAST, 90), (F32, FLAT, 80), (F16, LAST, 100)], ids=str)
def test_guidance(launched, tmp_path, net, layout, sm):
    case = Case((Op.EULER,) * 2, (3, 32, 32), F64, net, layout, guided=True, copies=2, known=True)
    F, buffers = case.build()
    step = lambda: backend.advance(F, buffers, 2, case.other(F))  # noqa: E731
    result = compiled(advance._advance_kernel, launched(advance, "_advance_kernel", step), sm, tmp_path)
    check_arithmetic(result.asm["ptx"])
    used = resources(result.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert used["REG"] <= 72, used
    result = compiled(guide_scale._guide_scale_kernel, launched(guide_scale, "_guide_scale_kernel", step), sm, tmp_path)
    done = check_arithmetic(result.asm["ptx"])
    assert done["sqrt.rn.f64"] >= 1
    assert done["div.rn.f64"] >= 1
    used = resources(result.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0, used


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_normal(launched, tmp_path, sm):
    seeds, out = torch.zeros(2, dtype=torch.int64), torch.empty(2, 3, 32, 32)
    launch = launched(philox, "_normal_kernel", lambda: philox.normal(seeds, seeds, out))
    result = compiled(philox._normal_kernel, launch, sm, tmp_path)
    assert check_arithmetic(result.asm["ptx"])["sqrt.rn.f32"] == 2
    moved = accesses(result.asm["ptx"])
    assert moved["st.global.v4.b32"] == 1
    assert not any("shared" in access for access in moved)
    used = resources(result.asm["cubin"], tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def test_one_specialisation_serves_every_row(launched):
    """k, counts and the number of programs are in no key: 35 rows do not compile 35 kernels."""
    free = {p.name for p in advance._advance_kernel.params if p.do_not_specialize}
    assert free == {"k", "rows", "slot_count", "draws", "blocks"}
    launch = advance_launch(launched, F64, BF16, FLAT)
    assert launch.kwargs["enable_fp_fusion"] is False
    assert launch.grid == (2 * 6,)  # two samples of 3072 elements


def test_opcodes_and_columns_are_the_plan_s():
    assert {op.name: int(op) for op in Op} == {op.name: getattr(advance, op.name).value for op in Op}
    assert backend._COLUMNS._fields[backend._COLUMNS.slope_t] == "slope_t"
