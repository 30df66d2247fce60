"""The CUDA sources, compiled with the project's own options and read: what can be known of them without a GPU."""

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ["80", "90", "100"]
NVCC = shutil.which("nvcc")

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc"),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="this is an installed copy, without csrc/"),
]


def options():
    """edm_cuda_options of CMakeLists.txt."""
    flags = re.search(r"set\(edm_cuda_options ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())[1].split()
    return [*flags, "-Werror=all-warnings"]


@cache
def compiled(source, architecture):
    """(PTX, what ptxas reports) of a source file; once, for it takes up to twenty seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [NVCC, *options(), f"-arch=sm_{architecture}", "-Xptxas", "-v", "--keep", f"--keep-dir={folder}"]
        command += ["-cubin", "-o", f"{folder}/cubin", ROOT / "csrc" / source]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return (Path(folder) / source.replace(".cu", ".ptx")).read_text(), run.stderr


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: f"sm_{a}")
def advance(request):
    return compiled("advance_cuda.cu", request.param)


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: f"sm_{a}")
def normal(request):
    return compiled("normal_cuda.cu", request.param)


def instructions(ptx):
    """Opcodes with their modifiers, one an instruction."""
    return re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*(?:\.[a-z0-9_:]+)*)\s", ptx, re.MULTILINE)


def check_contract(ptx):
    """No contraction, nothing approximate, no flushing of denormals to zero."""
    floating = [i for i in instructions(ptx) if re.search(r"\.f(16|32|64)", i)]
    assert len(floating) > 50
    for name in floating:
        assert not name.startswith(("fma.", "mad.")), name
        assert ".approx" not in name and ".ftz" not in name, name  # noqa: PT018
        if name.startswith(("div.", "sqrt.", "rcp.")):
            assert name in ("div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64"), name
    assert "sqrt.rn.f32" in floating
    return floating


def test_advance_holds_the_contract(advance):
    floating = check_contract(advance[0])
    assert "div.rn.f64" in floating
    assert "div.rn.f32" in floating
    assert "sqrt.rn.f64" in floating  # of guide_scale
    # float64 states round to float32, float32 to float16, each to nearest even
    assert "cvt.rn.f32.f64" in floating
    assert "cvt.rn.f16.f32" in floating


def test_normal_holds_the_contract(normal):
    check_contract(normal[0])


def test_advance_moves_16_bytes_at_a_time(advance):
    found = set(instructions(advance[0]))
    for load in ("ld.global.v2.f64", "ld.global.v4.f32", "ld.global.v4.u16"):
        assert found & {load, load.replace(".f", ".b").replace(".u", ".b")}, load
    assert found >= {"st.global.wb.v2.f64", "st.global.wb.v4.f32", "st.global.wb.v4.u16"}


def test_normal_writes_16_bytes_at_a_time(normal):
    assert "st.global.wb.v4.f32" in instructions(normal[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", ["advance_cuda.cu", "normal_cuda.cu"])
def test_no_local_memory(source, architecture):
    """A thread's elements stay in registers: neither spills nor arrays indexed at run time."""
    ptx, report = compiled(source, architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills
    assert {number for kernel in spills for number in kernel} == {"0"}
    assert not [i for i in instructions(ptx) if i.startswith(("ld.local", "st.local"))]


def test_addresses_have_64_bits(advance):
    """Strides and sample offsets are multiplied as 64-bit integers, not widened afterwards."""
    found = instructions(advance[0])
    assert any(i in ("mul.lo.s64", "mad.lo.s64") for i in found)
    assert not [i for i in found if i.startswith(("mul.wide", "mad.wide")) and i.endswith("s32")], "32-bit products"


def test_project_options_are_the_ones_compiled_with():
    assert "--fmad=false" in options()
    assert not [o for o in options() if "fast-math" in o or "prec" in o or "ftz" in o]
