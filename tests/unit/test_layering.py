"""Imports point one way: api -> loop -> backends -> {kernels, _native, reference}."""

import ast
from pathlib import Path

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
        "ranges",
        "preconditioning",
        "discrete",
        "networks.ops",
        "networks.dense",
        "networks.activations",
        "networks.winograd",
        "networks.native_ops",
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


def imports(path: Path, module: str) -> set[str]:
    """Modules of the package that a file imports at run time, relative names resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*base, name]) for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "engine":
            found |= {f"{node.module}.{alias.name}".removeprefix("engine").strip(".") for alias in node.names}
    return found - {"_native"}


def test_imports_point_one_way():
    checked = 0
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")
        for imported in imports(path, module):
            checked += 1
            assert level(imported) <= level(module), f"engine.{module} imports engine.{imported}"
    assert checked > 40


def test_kernels_know_nothing_of_the_engine():
    import engine.kernels

    folder = Path(engine.kernels.__file__).parent
    for path in folder.rglob("*.py"):
        module = "kernels." + ".".join(path.relative_to(folder).with_suffix("").parts)
        assert all(name.startswith("kernels") for name in imports(path, module)), path
