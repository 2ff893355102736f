"""Which module may import which, and how long files and functions may get."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "retinanet_ext"
FILES = sorted(PACKAGE.rglob("*.py"))

# Modules that import no engine, and nothing of the package but each other: `lite` may use them too.
ENGINE_FREE = {
    "registry",
    "ops",
    "losses",
    "machine",
    "evaluation",
    "config.yaml_files",
    "config.plain_values",
    "config.class_count",
    "checkpoint.array_pickle",
    "checkpoint.checkpoint_file",
    "checkpoint.checkpoint_writing",
    "checkpoint.file_checksum",
    "checkpoint.newest_checkpoint",
    "data.coco_file",
    "data.doctor.run_lengths",
    "data.empty_images",
    "data.record_list",
    "training.arguments",
    "training.step",
    "training.incidents.nonfinite_losses",
    "training.incidents.state_before_step",
    "training.stops",
}
# What each part may import from the package, besides itself and the engine-free modules. Parts that are not listed
# (the command line and what it runs) may import everything.
ALLOWED = {
    "registry": set(),
    "ops": set(),
    "machine": set(),
    "report": set(),
    "losses": set(),
    "evaluation": set(),
    "lite": set(),
    "d2": {"lite"},
    "data": {"d2", "embedding"},
    "checkpoint": {"d2"},
    "config": {"d2", "data", "detection", "instance", "embedding"},
    "detection": {"d2"},
    "embedding": {"d2", "report"},
    "instance": {"d2", "detection", "embedding"},
    "inference": {"d2", "checkpoint", "config", "data", "detection", "instance", "embedding"},
    "inspection": {"d2", "checkpoint", "config", "data", "inference", "embedding", "report"},
    "training": {"d2", "checkpoint", "config", "data", "inference", "inspection", "embedding"},
}
MAX_FILE_LINES, MAX_BODY_LINES = 400, 40
# May be longer: constructors whose arguments document a model.
LONG_BODIES = {"detection/retinanet.py:__init__"}


def module_of(path: Path) -> str:
    """The module's name without the package's: ``lite.engine.hooks``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, named as by `module_of`, and modules of Detectron2."""
    names = set()
    package = ["retinanet_ext", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    modules = {module_of(file) for file in FILES}
    found = {name for name in names if name.split(".")[0] == "detectron2" and path != PACKAGE / "d2.py"}
    for name in (name.removeprefix("retinanet_ext.") for name in names if name.startswith("retinanet_ext.")):
        found.add(name if name in modules else name.rpartition(".")[0])
    return found


def is_engine_free(module: str) -> bool:
    return any(module == free or module.startswith(f"{free}.") for free in ENGINE_FREE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    module, imported = module_of(path), imported_modules(path)
    assert not [name for name in imported if name.split(".")[0] == "detectron2"], "only d2.py imports Detectron2"
    if is_engine_free(module):
        assert all(map(is_engine_free, imported)), "lite imports this file, so it may know no engine"
    part = module.split(".")[0]
    if part in ALLOWED:
        parts = {name.split(".")[0] for name in imported if not is_engine_free(name)}
        assert parts <= ALLOWED[part] | {part}


def test_no_module_stands_loose_and_no_name_occurs_twice():
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "d2.py", "registry.py"]
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


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
    """Names that no file imports must be deleted, so that the embedded engine stays small."""
    exported = set()
    for node in ast.walk(ast.parse((PACKAGE / "d2.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectron2"):
            exported.update(alias.asname or alias.name for alias in node.names)
    used = set()
    for path in [*FILES, ROOT / "train_net.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "retinanet_ext.d2":
                used.update(alias.name for alias in node.names)
    # For users' own code, which should not need to know the engine either.
    promised = {"DefaultPredictor", "EventStorage", "ColorMode", "BitMasks", "PolygonMasks", "Keypoints"}
    assert exported - used <= promised


def test_both_engines_give_the_seam_the_same_names():
    names = {"detectron2": set(), "lite": set()}
    for node in ast.walk(ast.parse((PACKAGE / "d2.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            engine = "detectron2" if node.module.startswith("detectron2") else "lite"
            names[engine].update(alias.asname or alias.name for alias in node.names)
    assert names["detectron2"] == names["lite"]


# Not used by the package: users of Detectron2 call these in mappers, trainers and notebooks of their own.
PROMISED_BY_LITE = {"gen_crop_transform_with_instance", "annotations_to_instances", "draw_dataset_dict"}
PROMISED_BY_LITE |= {"DefaultPredictor", "CallbackHook", "inside_box", "get_centers"}
PROMISED_BY_LITE |= {"BestCheckpointer"}
PROMISED_BY_LITE |= {"draw_binary_mask", "draw_polygon", "draw_and_connect_keypoints", "from_polygon_masks"}
PROMISED_BY_LITE |= {"RandomApply", "RandomRotation", "ColorTransform", "reduce_dict"}
PROMISED_BY_LITE |= {"RandomBrightness", "RandomContrast", "RandomSaturation", "draw_box"}
# Named by configs.
PROMISED_BY_LITE |= {"build_resnet_fpn_backbone"}
# Called by the libraries whose classes they override.
OVERRIDES = {"extra_repr", "get_lr"}


def test_lite_has_nothing_that_nobody_uses():
    """Of functions, classes and methods; by name, so that a name that occurs elsewhere too is taken for used."""
    files = [path for path in FILES if path.name not in ("__init__.py", "d2.py")]
    texts = "\n".join(path.read_text() for path in [*files, ROOT / "train_net.py"])
    occurrences = Counter(re.findall(r"\w+", texts))
    unused = set()
    for path in (path for path in files if path.relative_to(PACKAGE).parts[0] == "lite"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if is_public and occurrences[node.name] == 1:
                unused.add(node.name)
    assert unused == PROMISED_BY_LITE | OVERRIDES


def test_train_net_is_short():
    assert len((ROOT / "train_net.py").read_text().splitlines()) < 80
