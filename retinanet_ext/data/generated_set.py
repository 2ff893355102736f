"""Writes a generated set once: a folder with a manifest of its settings and a checksum of its files."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def write_once(
    root: Path,
    settings: dict,
    write: Callable[[Path], None],
    *,
    manifest: str,
    folders: Sequence[str],
    overwrite: bool,
) -> bool:
    """Write a set, unless it is there.

    Args:
        root: folder to create; it must be absent, empty, or hold such a set.
        settings: what the files follow from; written to the manifest.
        write: writes the set to an empty folder.
        manifest: name of the manifest's file.
        folders: folders of the set; their files count for the checksum.
        overwrite: replace a set with other settings, or a damaged one.

    Returns:
        True if files were written, False if the set existed already.

    Raises:
        ValueError: `root` holds anything but this set.
    """
    if root.exists() and _is_current(root, settings, manifest, folders, overwrite):
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written next to `root` and then renamed, so that an interrupted run leaves no incomplete set.
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        new = Path(scratch) / "set"
        new.mkdir()
        write(new)
        content = {**settings, "sha256": _digest(new, folders)}
        (new / manifest).write_text(json.dumps(content, indent=2) + "\n")
        if root.exists():
            shutil.rmtree(root)
        os.replace(new, root)
    return True


def check_settings(settings: dict, lowest: dict) -> None:
    """Refuse settings that are no integer, or below the lowest legal one.

    Raises:
        ValueError: names the setting.
    """
    for name, value in settings.items():
        if not isinstance(value, int) or value < lowest[name]:
            raise ValueError(f"{name} must be an integer >= {lowest[name]}, found {value!r}.")


def _is_current(root, settings, manifest, folders, overwrite):
    """True if `root` holds exactly this set, False if it may be written or replaced."""
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the name of a folder to write the set to.")
    if not any(root.iterdir()):
        return False
    if not (root / manifest).exists():
        raise ValueError(
            f"{root} holds files but no {manifest}, so it was not written by this command and is left alone. "
            "Choose a new folder, or empty this one yourself."
        )
    found = json.loads((root / manifest).read_text())
    checksum = found.pop("sha256", None)
    different = {k: (found.get(k), settings.get(k)) for k in {**settings, **found} if found.get(k) != settings.get(k)}
    if not different and checksum == _digest(root, folders):
        return True
    if overwrite:
        return False
    if different:
        reason = "was written with " + ", ".join(f"{k}={a} (asked: {b})" for k, (a, b) in different.items())
        if "generator_version" in different:
            reason += "; another version of the generator gives other files for the same arguments"
    else:
        reason = "has files that changed or went missing since it was written"
    raise ValueError(f"The set in {root} {reason}. Choose a new folder, or overwrite it (--overwrite).")


def _digest(root, folders):
    """SHA-256 over names and contents of all files in the folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for path in (root / folder).rglob("*") if path.is_file()):
            digest.update(f"{folder}/{path.relative_to(root / folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
