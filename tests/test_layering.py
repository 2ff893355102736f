"""Who may import whom, and how long files and functions may get."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "retinanet_ext"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a part may import of the package, besides itself. Parts that are not listed may import everything.
ALLOWED = {
    "registry": set(),
    "config_files": set(),
    "ops": set(),
    "losses": {"ops", "registry"},
    "lite": {"ops", "registry", "config_files"},
    "d2": {"lite"},
    "config_values": {"d2", "data"},
    "config": {"config_files", "config_values", "d2", "data"},
    "data": {"d2"},
    "detection": {"d2", "losses", "ops", "registry"},
    "predictor": {"d2", "data", "checkpoint", "cpu_memory", "detection"},
}
MAX_FILE_LINES, MAX_BODY_LINES = 400, 40
# Longer for a reason: constructors whose arguments are the documentation of a model.
LONG_BODIES = {"detection/retinanet.py:__init__"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    names = set()
    package = ["retinanet_ext", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            if module == "retinanet_ext":
                names.update(f"retinanet_ext.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part, modules = part_of(path), imported_modules(path)
    if path != PACKAGE / "d2.py":
        assert not [m for m in modules if m.split(".")[0] == "detectron2"], "only d2.py imports Detectron2"
    if part in ALLOWED:
        parts = {m.split(".")[1] for m in modules if m.startswith("retinanet_ext.")}
        assert parts <= ALLOWED[part] | {part}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            name = f"{path.relative_to(PACKAGE)}:{node.name}"
            assert length <= MAX_BODY_LINES or name in LONG_BODIES, f"{name} has {length} lines"


def test_every_name_of_the_seam_is_used():
    """A name nobody imports is deleted, so that the embedded engine stays as small as it can."""
    exported = set()
    for node in ast.walk(ast.parse((PACKAGE / "d2.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectron2"):
            exported.update(alias.asname or alias.name for alias in node.names)
    used = set()
    for path in [*FILES, ROOT / "train_net.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "retinanet_ext.d2":
                used.update(alias.name for alias in node.names)
    # For users' own code, which should not have to know which engine runs either.
    promised = {"DefaultPredictor", "EventStorage", "ColorMode"}
    assert exported - used <= promised


def test_both_engines_give_the_seam_the_same_names():
    names = {"detectron2": set(), "lite": set()}
    for node in ast.walk(ast.parse((PACKAGE / "d2.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            engine = "detectron2" if node.module.startswith("detectron2") else "lite"
            names[engine].update(alias.asname or alias.name for alias in node.names)
    assert names["detectron2"] == names["lite"]


def test_train_net_is_short():
    assert len((ROOT / "train_net.py").read_text().splitlines()) < 80
