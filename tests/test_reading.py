"""What readers are told is true: the reading path runs, packages list their files, docstrings state shapes."""

import ast
import re

import pytest

from retinanet_ext.d2 import ENGINE
from tests.conftest import REPO_ROOT
from tests.follow import follow_inference, follow_training

PACKAGE = REPO_ROOT / "retinanet_ext"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = [path.parent for path in FILES if path.name == "__init__.py"]


def reading_path() -> list[tuple[str, list[str], list[str]]]:
    """For each step in CONTRIBUTING: its file, the functions that run, and the references."""
    text = (REPO_ROOT / "CONTRIBUTING.md").read_text().split("## Where to begin reading")[1].split("\n## ")[0]
    steps = re.split(r"\n\d+\. ", text)[1:]
    steps[-1] = steps[-1].split("\n\n")[0]
    return [
        (
            re.match(r"`([^`]+)`", step)[1],
            re.findall(r"`(\w+)\(\)`", step),
            re.findall(r"reference `(\w+)`", step),
        )
        for step in steps
    ]


@pytest.fixture(scope="module")
def trail(tmp_path_factory):
    return follow_training(tmp_path_factory.mktemp("followed"))


def test_every_function_of_the_reading_path_runs_and_no_reference_does(trail):
    ran = trail.functions | follow_inference()
    steps = reading_path()
    assert len(steps) == 7 and sum(len(functions) for _, functions, _ in steps) > 8
    for file, functions, references in steps:
        source = (REPO_ROOT / file).read_text()
        for name in functions:
            assert (file, name) in ran, f"CONTRIBUTING sends a reader to {name} in {file}, which does not run"
        for name in references:
            assert f"def {name}(" in source and (file, name) not in ran, f"{name} in {file} is no reference"


@pytest.mark.skipif(ENGINE != "lite", reason="counts this project's files; Detectron2's path is mostly its own")
def test_the_path_of_a_step_and_of_an_image_stays_short(trail):
    assert trail.step.keys() >= {"train_net.py", "retinanet_ext/training/step.py", "retinanet_ext/lite/solver.py"}
    assert len(trail.step) <= 14
    assert trail.image.keys() >= {"retinanet_ext/data/replacing_mapper.py", "retinanet_ext/losses/focal.py"}
    assert len(trail.image) <= 26


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(REPO_ROOT).as_posix())
def test_a_package_lists_its_files(package):
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    listed = re.findall(r"^- ``([\w.]+)``: \S", docstring, re.MULTILINE)
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    # Packages may be listed like files, or be named in the text.
    packages = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert len(listed) == len(set(listed)) and files <= set(listed) <= files | packages


def test_the_table_of_the_design_names_every_package():
    rows = re.findall(r"^\| .* \| (`.*`) \|$", (REPO_ROOT / "docs" / "design.md").read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    assert named == {path.relative_to(PACKAGE).as_posix() for path in PACKAGES} - {"."}


# A shape as docstrings write it: (N, 4), (R,), (N, K, H, W), (..., 4); or the word scalar.
SHAPE = re.compile(r"\((\w[\w*+ ]*|\.\.\.),[^()]*\)|scalar|any shape|[Oo]ne shape")


def functions_of_tensors():
    for path in FILES:
        tree = ast.parse(path.read_text())
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        owner = {id(item): node for node in classes for item in node.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            holder = owner.get(id(node))
            if holder is not None and holder.name.startswith("_"):
                continue
            annotations = [argument.annotation for argument in [*node.args.args, *node.args.kwonlyargs]]
            texts = [ast.unparse(found) for found in [*annotations, node.returns] if found is not None]
            if any(re.search(r"\b(torch\.Tensor|np\.ndarray)\b", text) for text in texts):
                yield path, holder, node


def test_public_functions_of_tensors_state_shapes():
    """The shapes may be in the function's docstring or in that of its class."""
    silent = []
    for path, holder, node in functions_of_tensors():
        text = (ast.get_docstring(node) or "") + (ast.get_docstring(holder) or "" if holder is not None else "")
        if not SHAPE.search(text):
            silent.append(f"{path.relative_to(REPO_ROOT)}:{node.lineno} {node.name}")
    assert not silent, "\n".join(silent)
