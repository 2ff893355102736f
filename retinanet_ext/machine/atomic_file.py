"""Files that appear under their name only once they are complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | os.PathLike, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write bytes to. After an error or a crash, the file that was there before is still whole.

    Args:
        path: its folder is made if it does not exist.
        shared: several processes may write the file at the same time, so each has an unfinished file of its own. A
            process that is killed leaves it behind; otherwise the next writer uses the same one again.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    unfinished = f"{path}.{os.getpid()}.unfinished" if shared else f"{path}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(os.path.dirname(path) or ".")
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def _sync_folder(folder: str) -> None:
    """Make the new name survive a loss of power. Some file systems cannot do this, and need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: str | os.PathLike, text: str, *, shared: bool = False) -> None:
    """Write a whole text file; see `atomic_file`."""
    with atomic_file(path, shared=shared) as file:
        file.write(text.encode())
