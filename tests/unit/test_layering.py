"""Imports point one way: api -> loop -> backends -> {kernels, _native, reference}."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import engine

ROOT = Path(engine.__file__).parent
# Lowest first: a module may import only from groups before its own, or its own group.
LAYERS = [
    {
        "kernels",
        "allowed",
        "noise",
        "files",
        "provenance",
        "dealing",
        "record",
        "tensor_file",
        "transfer",
        "warn",
        "modes",
        "progress",
        "ranges",
        "preconditioning",
        "discrete",
        "networks.ops",
        "networks.sizes",
        "networks.dense",
        "networks.arena",
        "networks.winograd",
        "networks.native_ops",
        "networks.tape",
        "networks.recording",
        "networks.remembered",
        "networks.triton_ops",
        "networks.layers",
        "networks.block",
        "networks.precision",
    },
    {"networks", "networks.song", "networks.dhariwal", "plan", "plan_cache", "state"},
    {"samplers", "samplers.base", "samplers.levels", "samplers.registry", "reference", "denoiser", "images"},
    {"outputs.base", "outputs.kinds", "outputs.archive", "outputs.png_folder"},
    {"outputs"},
    {"writing"},
    {"adapters", "adapters.schedule", "adapters.unet", "adapters.folder", "adapters.k_diffusion"},
    {"backends", "networks.ideal", "checkpoints", "prepare", "guidance", "measure"},
    {
        "loop",
        "batch",
        "preview",
        "adaptive",
        "job",
        "torch_noise",
        "batch_invariant",
        "probe",
        "overflow",
        "run",
        "verify.cases",
        "verify.compare",
        "verify.normals",
        "verify.self_check",
    },
    {"graphs", "fitting"},
    {"launch", "options"},
    {"nonfinite"},
    {"engine"},
    {"api", "drawing"},
    {"ray_data"},
    {"adapters.scheduler", "adapters.pipeline"},
    {
        "metrics.classifier",
        "metrics.features",
        "metrics.frechet",
        "metrics.inception_score",
        "metrics.intervals",
        "metrics.manifolds",
        "metrics.statistics",
        "training.augment",
        "training.brightness",
        "training.data",
        "training.loss",
        "training.loss_curve",
        "training.optimizer",
        "training.presets",
        "training.run",
        "training.trainer",
    },
    {"metrics.quality", "metrics.reference"},
    {"metrics.scoring"},
    {"metrics", "training"},
    {"verify", "verify.precision"},
    {"tuning", "report.measurements", "report.section"},
    {"report"},
    {"cli", "__main__", ""},
]


def level(module: str) -> int:
    while True:
        for index, layer in enumerate(LAYERS):
            if module in layer:
                return index
        assert "." in module, f"engine.{module} is in no layer"
        module = module.rpartition(".")[0]


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """What of the package a module imports at run time, each as module.name: a name may be a module itself."""
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    tree = ast.parse(source)
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    unseen = {inner for block in typing for inner in ast.walk(block)}
    for node in set(ast.walk(tree)) - unseen:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = ["engine", *package.split(".")] if package else ["engine"]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            found |= {".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names}
    ours = {name.removeprefix("engine").strip(".") for name in found if name.split(".")[0] == "engine"}
    return {name for name in ours if name.split(".")[0] != "_native"}


def imports_of(path: Path, module: str) -> set[str]:
    return imports(path.read_text(), module, path.name == "__init__.py")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import engine.api", {"api"}),
        ("import engine.api as api, torch", {"api"}),
        ("import engine", {""}),
        ("from engine.networks import ideal", {"networks.ideal"}),
        ("from .networks import ideal", {"networks.ideal"}),
        ("from ..networks import ideal", {"networks.ideal"}),
        ("from . import _native, loop", {"loop"}),
        ("from ._native import advance", set()),
        ("if TYPE_CHECKING:\n    from . import loop\nfrom . import plan", {"plan"}),
        ("from torch import nn\nimport engineering", set()),
    ],
)
def test_every_form_of_import_is_seen(source, expected):
    assert imports(source, "samplers.edm" if ".." in source else "plan") == expected


def test_a_module_of_a_package_has_a_level_of_its_own():
    """An import of it from a layer below passed for one of its package."""
    assert level("networks.ideal") > level("plan") >= level("networks.SongUNet")


def test_imports_point_one_way():
    checked = 0
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")
        for imported in imports_of(path, module):
            checked += 1
            assert level(imported) <= level(module), f"engine.{module} imports engine.{imported}"
    assert checked > 40


def test_no_module_imports_itself_by_way_of_others():
    """Groups of `LAYERS` hold several modules, which may import one another one way."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip("."): path
        for path in ROOT.rglob("*.py")
    }

    def module_of(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {name: {module_of(n) for n in imports_of(path, name)} - {name, ""} for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError naming the modules
    with pytest.raises(CycleError):
        TopologicalSorter(graph | {"allowed": {"engine"}}).prepare()


def test_kernels_know_nothing_of_the_engine():
    import engine.kernels

    folder = Path(engine.kernels.__file__).parent
    for path in folder.rglob("*.py"):
        module = "kernels." + ".".join(path.relative_to(folder).with_suffix("").parts)
        assert all(name.startswith("kernels") for name in imports_of(path, module)), path


def test_benchmarks_run_without_the_tests():
    for path in (Path(__file__).parents[2] / "bench").glob("*.py"):
        assert not re.search(r"\btests\.|import tests|from tests", path.read_text()), path
