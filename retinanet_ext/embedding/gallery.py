"""A gallery: the faces of known people on disk, and the search among them.

M queries, N faces, D numbers per embedding. Several processes may read and write one gallery; see `gallery_file.py`
for what happens when one is killed. The distance of a query to a person is the smallest over the person's faces.
"""

import sqlite3
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .codes import encode
from .gallery_file import (
    GalleryError,
    check_integrity,
    count_change,
    damaged,
    make_tables,
    properties,
    transaction,
)
from .search import ExactIndex

_FETCHED = 8192  # faces read at once
_LENGTH_TOLERANCE = 1e-3


class Match(NamedTuple):
    """A person near a query: squared L2 distance of the nearest face, 0 to 4, and where that face came from."""

    name: str
    distance: float
    source: str | None


class Added(NamedTuple):
    """Number of faces that `Gallery.add` stored: new ones, and those that replaced one of the same name and source."""

    new: int
    replaced: int


@dataclass
class _Faces:
    """All faces at one moment: ``ids`` and ``name_ids`` ``(N,)`` int64, in the order of the rows of ``index``."""

    key: tuple
    index: ExactIndex
    ids: np.ndarray
    name_ids: torch.Tensor


class Gallery:
    """Faces of known people in one file::

        gallery = Gallery("people.gallery", fingerprint=embedder.fingerprint, dim=embedder.dim, create=True)
        gallery.add("Anna", embedder(["a1.jpg", "a2.jpg"]), ["a1.jpg", "a2.jpg"])
        [[match]] = gallery.search(embedder(["who.jpg"]))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: str | None = None,
        dim: int | None = None,
        codes: bool | None = None,
        description: str = "",
        compatible: Sequence[str] = (),
        create: bool = False,
        backend: str = "torch",
    ):
        """
        Args:
            path: the file.
            fingerprint: identifies the model whose embeddings are added and searched for. None: only names are listed,
                removed and renamed.
            dim: D of that model.
            codes: store each embedding as D bytes (True) or as float32. None: as the gallery has it; for a new one,
                bytes.
            description: says to people which model it is, for example its config and checkpoint.
            compatible: fingerprints of other models whose embeddings may be compared with this model's, as those that
                it was trained to be compatible with.
            create: make the file if it is missing.
            backend: see `ExactIndex`.

        Raises:
            GalleryError: the file is missing, damaged or no gallery; it was made by another model, has another size, or
                stores the embeddings otherwise.
        """
        self.path = Path(path)
        self.fingerprint = fingerprint
        self.description = description
        self.compatible = frozenset(compatible)
        self._backend = backend
        self._faces: _Faces | None = None
        if create:
            self._create(dim, codes)
        check_integrity(self.path)
        with transaction(self.path) as connection:
            found = properties(connection)
            self.dim, self.is_codes = int(found["dim"]), bool(found["codes"])
            self._check_models(connection)
        self._check_dim(self.dim if dim is None else dim)
        if codes is not None and codes != self.is_codes:
            kinds = {True: "bytes", False: "float32"}
            raise GalleryError(f"the gallery {path} stores {kinds[self.is_codes]}, not {kinds[codes]}")

    def __len__(self) -> int:
        """Number of faces."""
        with transaction(self.path) as connection:
            return connection.execute("SELECT count(*) FROM faces").fetchone()[0]

    def names(self) -> dict[str, int]:
        """Each name with its number of faces, sorted by name."""
        with transaction(self.path) as connection:
            return dict(
                connection.execute(
                    "SELECT name, count(*) FROM names JOIN faces ON name_id = names.id GROUP BY name ORDER BY name"
                )
            )

    def models(self) -> dict[str, str]:
        """Fingerprint -> description, of each model that made embeddings of this gallery."""
        with transaction(self.path) as connection:
            return dict(connection.execute("SELECT fingerprint, description FROM models ORDER BY id"))

    def add(
        self, name: str, embeddings: torch.Tensor | np.ndarray, sources: Sequence[str | None] | None = None
    ) -> Added:
        """Store faces of a person, all or none of them. When this returns, they are on the disk.

        Args:
            name: the person; a new one, or one with faces already.
            embeddings: float ``(N, D)`` of length 1.
            sources: where each face came from, for example its file. A face whose name and source are in the gallery
                replaces that one, so that adding the same files again changes nothing. None is never replaced.

        Raises:
            GalleryError: the embeddings are of another size or model, not of length 1, or not finite; a source occurs
                twice; the name is empty.
        """
        name = _checked_name(name)
        self._need_model("add faces")
        blobs = self._blobs(embeddings)
        sources = [None] * len(blobs) if sources is None else [s if s is None else str(s) for s in sources]
        known = [source for source in sources if source is not None]
        if len(sources) != len(blobs) or len(set(known)) < len(known):
            raise GalleryError(f"{len(blobs)} embeddings came with {len(sources)} sources, {len(set(known))} distinct")
        if not blobs:
            return Added(0, 0)
        with transaction(self.path, write=True) as connection:
            self._check_models(connection)
            model_id = self._model_id(connection)
            connection.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
            name_id = connection.execute("SELECT id FROM names WHERE name = ?", (name,)).fetchone()[0]
            replaced = sum(_remove_source(connection, name_id, source) for source in known)
            connection.executemany(
                "INSERT INTO faces (name_id, model_id, source, embedding, checksum) VALUES (?, ?, ?, ?, ?)",
                ((name_id, model_id, s, blob, zlib.crc32(blob)) for s, blob in zip(sources, blobs)),
            )
            count_change(connection)
        return Added(len(blobs) - replaced, replaced)

    def remove(self, name: str) -> int:
        """Remove a person with all faces; returns their number.

        Raises:
            GalleryError: there is no such name.
        """
        with transaction(self.path, write=True) as connection:
            name_id = self._name_id(connection, name)
            removed = connection.execute("DELETE FROM faces WHERE name_id = ?", (name_id,)).rowcount
            connection.execute("DELETE FROM names WHERE id = ?", (name_id,))
            # The last model stays: it says what the embeddings of an empty gallery are to be.
            connection.execute(
                "DELETE FROM models WHERE id NOT IN (SELECT model_id FROM faces) AND EXISTS (SELECT 1 FROM faces)"
            )
            count_change(connection)
        return removed

    def rename(self, old: str, new: str) -> None:
        """Give a person another name.

        Raises:
            GalleryError: there is no name ``old``, or there is a name ``new``.
        """
        new = _checked_name(new)
        with transaction(self.path, write=True) as connection:
            name_id = self._name_id(connection, old)
            if connection.execute("SELECT 1 FROM names WHERE name = ? AND id != ?", (new, name_id)).fetchone():
                raise GalleryError(f"the gallery {self.path} has the name {new!r} already; remove it first")
            connection.execute("UPDATE names SET name = ? WHERE id = ?", (new, name_id))
            count_change(connection)

    def search(
        self, embeddings: torch.Tensor | np.ndarray, k: int = 1, threshold: float | None = None
    ) -> list[list[Match]]:
        """For each query the ``k`` nearest people, nearest first; of equally near ones that with the oldest face.

        Args:
            embeddings: float ``(M, D)`` of length 1.
            k: at most this many people.
            threshold: people beyond this squared distance are left out. None: nobody is.

        Raises:
            GalleryError: the gallery is empty, or the embeddings are of another size or model.
        """
        self._need_model("search")
        queries = self._checked_embeddings(embeddings)
        with transaction(self.path) as connection:
            self._check_models(connection)
            faces = self._load(connection)
            if not len(faces.ids):
                raise GalleryError(f"the gallery {self.path} is empty; add faces with: retinanet-ext gallery add")
            people = len(set(faces.name_ids.tolist())) if k > 1 else 1
            distances, rows = faces.index.search(queries, 1 if k == 1 else 4 * k + 16)
            found = [dict(_firsts(faces.name_ids, *pair)) for pair in zip(distances, rows)]
            for query, nearest in zip(queries, found):
                _complete(faces, query, nearest, min(k, people), threshold)
            return [self._matches(connection, faces, list(nearest.values())[:k], threshold) for nearest in found]

    def _create(self, dim: int | None, codes: bool | None) -> None:
        self._need_model("make a gallery")
        if dim is None or dim < 1:
            raise GalleryError(f"a new gallery needs the number of numbers of an embedding, 1 or more; found {dim}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GalleryError(f"the folder of the gallery {self.path} cannot be made: {error}") from error
        with transaction(self.path, write=True, create=True) as connection:
            if make_tables(connection, dim, codes is not False):
                self._model_id(connection)

    def _need_model(self, what: str) -> None:
        if self.fingerprint is None:
            raise GalleryError(f"to {what}, the gallery {self.path} needs the fingerprint of the model")

    def _check_models(self, connection: sqlite3.Connection) -> None:
        if self.fingerprint is None:
            return
        allowed = self.compatible | {self.fingerprint}
        for fingerprint, description in connection.execute("SELECT fingerprint, description FROM models ORDER BY id"):
            if fingerprint not in allowed:
                raise GalleryError(
                    f"the gallery {self.path} was made by the model {_model(fingerprint, description)}, and this is "
                    f"{_model(self.fingerprint, self.description)}: their embeddings cannot be compared. Take that "
                    "model, or make another gallery; if this one was trained to be compatible, name the gallery's "
                    "fingerprint as compatible."
                )

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            made_by = ", ".join(_model(*model) for model in self.models().items())
            raise GalleryError(
                f"embeddings have {dim} numbers each, but the gallery {self.path} has {self.dim}, made by {made_by}"
            )

    def _model_id(self, connection: sqlite3.Connection) -> int:
        connection.execute(
            "INSERT OR IGNORE INTO models (fingerprint, description) VALUES (?, ?)",
            (self.fingerprint, self.description),
        )
        found = connection.execute("SELECT id FROM models WHERE fingerprint = ?", (self.fingerprint,))
        return found.fetchone()[0]

    def _name_id(self, connection: sqlite3.Connection, name: str) -> int:
        found = connection.execute("SELECT id FROM names WHERE name = ?", (_checked_name(name),)).fetchone()
        if found is None:
            some = [row[0] for row in connection.execute("SELECT name FROM names ORDER BY name LIMIT 11")]
            names = ", ".join(some[:10]) + (", ..." if len(some) > 10 else "")
            raise GalleryError(f"the gallery {self.path} has no name {name!r}; it has: {names or 'none'}")
        return found[0]

    def _checked_embeddings(self, embeddings) -> torch.Tensor:
        values = torch.as_tensor(embeddings).detach().cpu()
        if values.ndim != 2 or not values.is_floating_point():
            raise GalleryError(
                f"embeddings are {values.dtype} of shape {tuple(values.shape)}; expected: float, (N, {self.dim})"
            )
        self._check_dim(values.shape[1])
        values = values.float()
        lengths = values.norm(dim=1)
        wrong = ~((lengths - 1).abs() <= _LENGTH_TOLERANCE)  # in this form NaN is wrong too
        if wrong.any():
            index = int(wrong.nonzero()[0])
            raise GalleryError(f"embedding {index} has length {lengths[index]:g}; expected: 1, as FaceNet gives it")
        return values

    def _blobs(self, embeddings) -> list[bytes]:
        values = self._checked_embeddings(embeddings)
        stored = encode(values).numpy() if self.is_codes else values.numpy().astype("<f4")
        return [row.tobytes() for row in stored]

    def _load(self, connection: sqlite3.Connection) -> _Faces:
        """All faces; those of the last call, if nothing has changed since."""
        found = properties(connection)
        key = (found["gallery"], found["revision"])
        if self._faces is None or self._faces.key != key:
            self._faces = None  # frees its memory first
            self._faces = self._read(connection, key)
        return self._faces

    def _read(self, connection: sqlite3.Connection, key: tuple) -> _Faces:
        count = connection.execute("SELECT count(*) FROM faces").fetchone()[0]
        stored = np.empty((count, self.dim), np.int8 if self.is_codes else "<f4")
        ids, name_ids = np.empty(count, np.int64), torch.empty(count, dtype=torch.int64)
        cursor = connection.execute("SELECT id, name_id, embedding, checksum FROM faces ORDER BY id")
        start, size = 0, stored.itemsize * self.dim
        while rows := cursor.fetchmany(_FETCHED):
            for number, _, blob, checksum in rows:
                if len(blob) != size or zlib.crc32(blob) != checksum:
                    raise damaged(self.path, f"the bytes of face {number} are not those that were stored")
            block = slice(start, start + len(rows))
            ids[block] = [row[0] for row in rows]
            name_ids[block] = torch.tensor([row[1] for row in rows])
            stored[block] = np.frombuffer(b"".join(row[2] for row in rows), stored.dtype).reshape(len(rows), -1)
            start += len(rows)
        index = ExactIndex(stored if self.is_codes else stored.astype(np.float32, copy=False), self._backend)
        return _Faces(key, index, ids, name_ids)

    def _matches(self, connection, faces: _Faces, nearest: list, threshold: float | None) -> list[Match]:
        matches = []
        for distance, row in nearest:
            if threshold is None or distance <= threshold:
                name, source = connection.execute(
                    "SELECT name, source FROM faces JOIN names ON names.id = name_id WHERE faces.id = ?",
                    (int(faces.ids[row]),),
                ).fetchone()
                matches.append(Match(name, distance, source))
        return matches


def _firsts(name_ids: torch.Tensor, distances: torch.Tensor, rows: torch.Tensor):
    """The first face of each name: (name id, (distance, row)), in the order of ``rows`` ``(K,)``."""
    seen = set()
    for name_id, distance, row in zip(name_ids[rows].tolist(), distances.tolist(), rows.tolist()):
        if name_id not in seen:
            seen.add(name_id)
            yield name_id, (distance, row)


def _complete(faces: _Faces, query: torch.Tensor, nearest: dict, wanted: int, threshold: float | None) -> None:
    """Search among the names that are not in ``nearest`` yet, until there are ``wanted`` ones."""
    while len(nearest) < wanted and (threshold is None or max(d for d, _ in nearest.values()) <= threshold):
        allowed = ~torch.isin(faces.name_ids, torch.tensor(list(nearest)))
        distances, rows = faces.index.search(query[None], 4 * wanted + 16, allowed)
        nearest.update(_firsts(faces.name_ids, distances[0], rows[0]))


def _remove_source(connection: sqlite3.Connection, name_id: int, source: str) -> int:
    return connection.execute("DELETE FROM faces WHERE name_id = ? AND source = ?", (name_id, source)).rowcount


def _checked_name(name: str) -> str:
    """The name in Unicode's composed form: file systems give names of folders in either form."""
    checked = unicodedata.normalize("NFC", name).strip()
    if not checked or not checked.isprintable():
        raise GalleryError(f"the name {name!r} cannot be stored; legal: printable characters, at least one")
    return checked


def _model(fingerprint: str, description: str) -> str:
    return f"{fingerprint} ({description})" if description else fingerprint
