"""The file of a gallery: an SQLite database, opened for one transaction at a time.

SQLite's rollback journal makes a transaction all or nothing, also if the process is killed or the machine stops while
it writes. Writers wait for one another.
"""

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Marks the file as a gallery; ``file`` and SQLite show it.
APPLICATION_ID = 0x46436547
VERSION = 1
# How long a writer waits for another one.
BUSY_SECONDS = 30.0
# What is stored survives a power cut. A kill alone would need no waiting for the disk.
SYNCHRONOUS = "EXTRA"

_TABLES = (
    "CREATE TABLE properties (name TEXT PRIMARY KEY, value NOT NULL)",
    "CREATE TABLE models (id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, description TEXT NOT NULL)",
    "CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """CREATE TABLE faces (id INTEGER PRIMARY KEY AUTOINCREMENT, name_id INTEGER NOT NULL REFERENCES names (id),
    model_id INTEGER NOT NULL REFERENCES models (id), source TEXT, embedding BLOB NOT NULL, checksum INTEGER NOT NULL,
    UNIQUE (name_id, source))""",
)


class GalleryError(ValueError):
    """A gallery cannot be used as asked; the message names the file and says what to do."""


@contextmanager
def transaction(path: Path, *, write: bool = False, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the file, and commit at the end; after an error nothing of the transaction is stored.

    Args:
        path: the file.
        write: the transaction changes the file.
        create: the file may be missing or empty. Its tables are then made, see `make_tables`.

    Raises:
        GalleryError: no such file, no gallery, a damaged one, one that cannot be written, a full disk.
    """
    connection = None
    try:
        # Mode rw for readers too: after a kill, the first one to open the file rolls the unfinished change back.
        mode = "rwc" if create else "rw"
        uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        _check_kind(connection, path, create)
        yield connection
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _explained(error, path) from error
    finally:
        if connection is not None:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            connection.close()


def make_tables(connection: sqlite3.Connection, dim: int, codes: bool) -> bool:
    """Make the tables of a new gallery; False if they are there, from another writer."""
    if connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
        return False
    for statement in _TABLES:
        connection.execute(statement)
    # `gallery` tells a file from another one that took its place.
    values = {"gallery": uuid.uuid4().hex, "revision": 0, "dim": dim, "codes": int(codes)}
    connection.executemany("INSERT INTO properties VALUES (?, ?)", values.items())
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    return True


def properties(connection: sqlite3.Connection) -> dict:
    """``dim``, ``codes``, ``gallery`` (identifies the file) and ``revision`` (counts its changes)."""
    return dict(connection.execute("SELECT name, value FROM properties"))


def count_change(connection: sqlite3.Connection) -> None:
    """To be called in each transaction that changes faces or names."""
    connection.execute("UPDATE properties SET value = value + 1 WHERE name = 'revision'")


def check_integrity(path: Path) -> None:
    """
    Raises:
        GalleryError: the file is damaged. (The bytes of an embedding are checked where they are read.)
    """
    with transaction(path) as connection:
        problems = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        raise damaged(path, "; ".join(problems))


def damaged(path: Path, problem: str) -> GalleryError:
    return GalleryError(
        f"the gallery {path} is damaged: {' '.join(problem.split())}. Restore it from a backup, or make it again from "
        "the photos (retinanet-ext gallery add)."
    )


def _check_kind(connection: sqlite3.Connection, path: Path, create: bool) -> None:
    kind = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if kind == APPLICATION_ID:
        if version > VERSION:
            raise GalleryError(
                f"the gallery {path} has format {version}, written by a newer retinanet_ext; this one reads up to "
                f"{VERSION}. Update it."
            )
        return
    empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not empty:
        raise GalleryError(f"{path} is an SQLite database of another program, not a gallery")
    if not create:
        raise GalleryError(f"{path} is empty, not a gallery; make one with: retinanet-ext gallery add")


def _explained(error: sqlite3.Error, path: Path) -> GalleryError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return GalleryError(f"the gallery {path} was in use by another writer for {BUSY_SECONDS:g} s; try again")
    if "full" in text:
        return GalleryError(f"the disk is full: nothing of this change was stored in {path}. Free space and repeat it.")
    if "readonly" in text:
        return GalleryError(f"the gallery {path} cannot be written: the file or its folder is read-only")
    if "unable to open" in text:
        return _not_opened(path)
    if "not a database" in text:
        return damaged(path, "its beginning is not that of a gallery")
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "corrupt" in text or "no such" in text):
        return damaged(path, text)
    return GalleryError(f"the gallery {path} could not be read or written: {text}")


def _not_opened(path: Path) -> GalleryError:
    if path.is_dir():
        return GalleryError(f"the gallery {path} is a folder; name a file")
    if not path.exists() and path.parent.is_dir() and os.access(path.parent, os.W_OK):
        return GalleryError(f"there is no gallery {path}; make one with: retinanet-ext gallery add")
    return GalleryError(f"the gallery {path} cannot be opened: check that its folder exists and may be written")
