"""Reads config files for both engines: plain YAML with inheritance. Code in a file is never run."""

import copy
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from iopath.common.file_io import g_pathmgr

from .plain_values import check_plain

BASE_KEY = "_BASE_"
CONFIG_VERSION = 2
"""Version of the key layout that files must have; Detectron2's since 2019."""

_MAX_BYTES = 16_000_000

# The expression that Detectron2's Base-RetinaNet.yaml passes to `eval`: three octave steps over five base sizes.
_RETINANET_SIZES_EXPRESSION = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"
_RETINANET_SIZES = [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)]


def shipped_configs() -> Path:
    """The folder of the configs that come with this package."""
    package = Path(__file__).parents[1]
    inside = package / "configs"  # as installed from a wheel; in a clone the folder lies beside the package
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(filename: str) -> str:
    """The file itself if it exists; else the config of that name that comes with this package.

    ``quick/retinanet.yaml`` and ``configs/quick/retinanet.yaml`` name the same one.

    Raises:
        FileNotFoundError: there is neither; the message lists configs of similar names.
    """
    if os.path.isfile(filename):
        return filename
    folder = shipped_configs()
    if _shipped(filename).is_file():
        return str(_shipped(filename))
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.yaml"))]
    near = difflib.get_close_matches(Path(filename).name, [Path(name).name for name in names], n=3)
    similar = [name for name in names if Path(name).name in near] or names
    raise FileNotFoundError(
        f"config file {filename!r} does not exist (working directory: {os.getcwd()}); with the package come "
        f"{', '.join(similar)}"
    )


def _shipped(name: str) -> Path:
    """Where the config of this name would be among those that come with this package."""
    return shipped_configs() / Path(name).as_posix().removeprefix("configs/")


def read_config_file(filename: str) -> dict[str, Any]:
    """Read a YAML file. Its values override those of the file, or list of files, that its `_BASE_` key names.

    Only plain YAML is read: other loaders, Detectron2's default among them, run code that a file contains.

    Args:
        filename: path of the file. The path of a base is relative to the file that names it; if there is no such
            file, the configs that come with this package are searched for it.

    Raises:
        FileNotFoundError: no such file; for a base, the message also names the file that asks for it.
        ValueError: not YAML, a tag that would run code, or a VERSION other than 2.
        TypeError: YAML, but not `KEY: value` lines.
    """
    loaded = _read_with_bases(filename, (), {})
    version = loaded.get("VERSION", CONFIG_VERSION)
    if version != CONFIG_VERSION:
        raise ValueError(f"{filename}: VERSION is {version!r}; only {CONFIG_VERSION} is supported")
    return loaded


def own_keys(filename: str) -> list[str]:
    """Full names of the keys that a file itself sets, without those of its bases."""
    return [key for key in flat_keys(_read_yaml(find_config(filename))) if key != BASE_KEY]


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice in one section. Plain YAML silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value!r} occurs twice in one section; only the last would count"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_with_bases(filename: str, readers: tuple[str, ...], known: dict[str, dict]) -> dict[str, Any]:
    """`readers`: the files that led to this one, each of which names the next as its base. `known`: files read before.

    Without `known`, a chain of files that name two bases each, which share theirs, would be read exponentially often.
    """
    if filename in readers:
        raise ValueError(f"{filename} is its own {BASE_KEY}: {' -> '.join([*readers, filename])}")
    if filename in known:
        return copy.deepcopy(known[filename])
    loaded = _read_yaml(filename)
    merged: dict[str, Any] = {}
    for base in _bases(filename, loaded.pop(BASE_KEY, [])):
        base_path = os.path.normpath(os.path.join(os.path.dirname(filename), os.path.expanduser(base)))
        if not os.path.isfile(base_path) and _shipped(base).is_file():
            base_path = str(_shipped(base))
        try:
            _overwrite(merged, _read_with_bases(base_path, (*readers, filename), known), base_path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{filename}: its {BASE_KEY} {base!r} was not found: {error}") from None
    _overwrite(merged, loaded, filename)
    known[filename] = merged
    return copy.deepcopy(merged)


def _bases(filename: str, value: Any) -> list[str]:
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) and base and "\0" not in base for base in bases):
        raise ValueError(f"{filename}: {BASE_KEY} is {value!r}; legal: the path of a config file, or a list of paths")
    return bases


def _read_yaml(filename: str) -> dict[str, Any]:
    try:
        text = _read_text(filename)
        loaded = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{filename} is not a text file: {error}") from None
    except yaml.constructor.ConstructorError as error:
        raise ValueError(_unsafe_tag_message(filename, text, error)) from None
    except RecursionError:
        raise ValueError(f"{filename} is nested too deeply to be a config") from None
    # The library raises errors of many types for values that look like dates or numbers and are none.
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{filename} is not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise TypeError(f"{filename} must hold `KEY: value` lines, found {type(loaded).__name__}")
    check_plain(loaded, filename)
    return loaded


def _read_text(filename: str) -> str:
    # Reading a device or a pipe may never end.
    if os.path.exists(filename) and not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename} is not a file, but a folder or a device")
    if os.path.isfile(filename) and os.path.getsize(filename) > _MAX_BYTES:
        raise ValueError(f"{filename} has more than {_MAX_BYTES:,} bytes, which is too much for a config")
    with g_pathmgr.open(filename) as file:
        return file.read()


def _overwrite(target: dict, source: dict, filename: str, prefix: str = "") -> None:
    """Merge `source` into `target`, both nested. A value may not replace a section, nor a section a value."""
    for key, value in source.items():
        if key in target and isinstance(value, dict) != isinstance(target[key], dict):
            raise ValueError(f"{filename}: {prefix}{key} is a section of keys in one file and a value in the other")
        if isinstance(value, dict) and key in target:
            _overwrite(target[key], value, filename, f"{prefix}{key}.")
        else:
            target[key] = value


def _unsafe_tag_message(filename: str, text: str, error: yaml.constructor.ConstructorError) -> str:
    line = text.splitlines()[error.problem_mark.line].strip()
    tag = next((word for word in line.split() if word.startswith("!")), error.problem)
    message = (
        f"{filename}, line {error.problem_mark.line + 1}: the tag {tag} is refused, because loading it "
        f"runs code from the file (line: `{line}`). "
    )
    if _RETINANET_SIZES_EXPRESSION.replace(" ", "") in line.replace(" ", ""):
        return message + f"Replace the value by its numbers: `{line.split(':')[0]}: {_RETINANET_SIZES}`"
    return message + "Replace the value by what it evaluates to, as plain YAML: `KEY: [[32, 64], [128]]`"


def flat_keys(tree: dict, prefix: str = "") -> Iterator[str]:
    """Full names of the keys of nested dictionaries: `SOLVER.MAX_ITER`, ..."""
    return (key for key, _ in flat_items(tree, prefix))


def flat_items(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full names and values of the keys of nested dictionaries."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unknown_key_message(full_key: str, legal: Iterable[str]) -> str:
    """Say that a key does not exist, and name the nearest keys: first those of the same name in other sections."""
    legal = list(legal)
    prefix = f"{full_key}."
    inside = dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in legal if key.startswith(prefix))
    if inside:
        return f"config key {full_key!r} is a section and takes no value itself; its keys are {', '.join(inside)}"
    wanted = str(full_key).upper()  # keys are written in upper case
    same_name = [key for key in legal if key.split(".")[-1] == wanted.split(".")[-1]]
    near = same_name + difflib.get_close_matches(wanted, legal, n=3)
    hint = f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ""
    return f"config key {full_key!r} does not exist{hint}"
