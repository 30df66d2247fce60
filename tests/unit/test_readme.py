"""The README's Python runs as written."""

import re
from pathlib import Path

from engine.samplers import registry

ROOT = Path(__file__).parents[2]


def test_python_blocks_run(tmp_path, monkeypatch):
    """One after the other, as a reader would type them."""
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))  # one block puts a sampler on the list
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "out" / "sneakers.png").exists()
    assert namespace["images"].shape == (3, 1, 32, 32)


def test_files_it_shows_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
