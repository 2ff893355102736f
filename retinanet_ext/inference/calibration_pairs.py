"""The pairs of images that a calibration compares: from a file, from folders of identities, or of a dataset.

N images, P pairs.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from retinanet_ext.d2 import CfgNode, DatasetCatalog
from retinanet_ext.data.identity_folders import identity_records, read_identities
from retinanet_ext.data.registration import register_custom_datasets
from retinanet_ext.embedding.pairs import Pairs, draw_pairs, match_pairs, read_pairs, registered_pairs
from retinanet_ext.embedding.verification import check_finite, pair_distances

from .embedder import Embedder

MAX_PAIRS = 1_000_000  # of each kind, drawn from folders


@dataclass(frozen=True)
class ImagePairs:
    """Pairs of files.

    Args:
        image_ids: N names.
        files: N paths.
        indices: int64 ``(P, 2)``, the images of each pair.
        same: bool ``(P,)``.
        identities: int64 ``(P, 2)``, the identity of each image of a pair; None: unknown.
        num_missing: pairs that were left out, because an image is missing.
        source: where the pairs come from, in words.
    """

    image_ids: list[str]
    files: list[str]
    indices: np.ndarray
    same: np.ndarray
    identities: np.ndarray | None
    num_missing: int
    source: str

    @classmethod
    def from_file(cls, path: str, root: str | None = None, on_missing: str = "error") -> "ImagePairs":
        """Pairs of a file that ``read_pairs`` reads.

        Args:
            path: the file.
            root: folder that the names of images are relative to; None: that of the file.
            on_missing: see ``match_pairs``.
        """
        root = os.path.dirname(path) if root is None else root
        pairs = read_pairs(path, root)
        names = list(dict.fromkeys([*pairs.first, *pairs.second]))
        present = [name for name in names if os.path.isfile(os.path.join(root, name))]
        files = [os.path.join(root, name) for name in present]
        labels = [os.path.dirname(name) for name in present]
        return _matched(pairs, present, files, labels, on_missing, path)

    @classmethod
    def from_folder(cls, root: str, seed: int = 0, max_pairs: int = MAX_PAIRS) -> "ImagePairs":
        """Pairs of the images in ``root``, which has a folder for each identity.

        Args:
            root: the folder of folders.
            seed: draws pairs if there are more.
            max_pairs: largest number of pairs of each kind.
        """
        records = identity_records(root, read_identities(root, root))
        sizes = Counter(record["identity"] for record in records).values()
        same = sum(size * (size - 1) // 2 for size in sizes)
        different = len(records) * (len(records) - 1) // 2 - same
        names, labels = [r["image_id"] for r in records], [r["identity"] for r in records]
        if not same or not different:
            raise ValueError(
                f"{root}: {len(records)} images of {len(sizes)} identities give {same} same and {different} different "
                "pairs; calibration needs both: two identities or more, and one with two images or more"
            )
        counts = {"same": min(same, max_pairs), "different": min(different, max_pairs)}
        pairs = draw_pairs(names, labels, **counts, folds=1, seed=seed)
        return _matched(pairs, names, [r["file_name"] for r in records], labels, "error", root)

    @classmethod
    def from_dataset(cls, cfg: CfgNode, name: str) -> "ImagePairs":
        """The pairs of a dataset that is registered, or that DATASETS.CUSTOM describes."""
        register_custom_datasets(cfg)
        if name not in DatasetCatalog.list():
            raise ValueError(f"dataset {name!r} is not registered; describe it in DATASETS.CUSTOM of the config")
        records = DatasetCatalog.get(name)
        pairs = registered_pairs(name)
        if pairs is None:
            raise ValueError(f"dataset {name!r} has no pairs; calibrate with --pairs FILE or --images FOLDER")
        names, files = [r["image_id"] for r in records], [r["file_name"] for r in records]
        labels = [r["identity"] for r in records]
        on_missing = cfg.DATASETS.ON_MISSING_PAIR
        return _matched(pairs, names, files, labels, on_missing, name)

    @property
    def images(self) -> np.ndarray:
        """Indices of the images that are in some pair, int64, ascending."""
        return np.unique(self.indices)

    def distances(self, embeddings: Iterable) -> np.ndarray:
        """Distances ``(P,)``, from the embeddings ``(D,)`` of :attr:`images`, in that order.

        Raises:
            ValueError: an embedding is not finite; the message names the file.
        """
        matrix = np.stack([np.asarray(embedding) for embedding in embeddings])
        check_finite(matrix, [self.files[index] for index in self.images])
        return pair_distances(matrix, np.searchsorted(self.images, self.indices))

    def embed(self, embedder: Embedder) -> np.ndarray:
        """Distances ``(P,)`` by the embedder."""
        return self.distances(embedder.stream(self.files[index] for index in self.images))

    def groups(self, path: str) -> np.ndarray:
        """Group of each pair, str ``(P,)``: that of both images; "" if they differ, or if one has none.

        Args:
            path: CSV lines ``name,group``; the name is an image's or that of the folder that holds it.

        Raises:
            ValueError: a line has another form, or no line names an image of the pairs.
        """
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
        for number, row in rows:
            if len(row) != 2 or not row[0].strip() or not row[1].strip():
                raise ValueError(f"{path}, line {number}: found {','.join(row)!r}; legal: name,group")
        table = {row[0].strip(): row[1].strip() for _, row in rows}
        names = np.array(
            [table.get(name) or table.get(os.path.dirname(name), "") for name in self.image_ids], dtype=object
        )
        if not any(names):
            raise ValueError(
                f"{path}: none of its {len(table)} names is an image or a folder of the pairs, whose images have names "
                f"such as {self.image_ids[0]!r}"
            )
        first, second = names[self.indices].T
        return np.where(first == second, first, "")


def _matched(pairs: Pairs, names, files, labels, on_missing, source) -> ImagePairs:
    matched = match_pairs(pairs, names, on_missing, source)
    _, numbers = np.unique(np.asarray(labels), return_inverse=True)
    identities = numbers[matched.indices]
    # Names of folders are a guess; where they contradict the pairs, identities are unknown.
    is_known = bool(((identities[:, 0] == identities[:, 1]) == matched.same).all())
    return ImagePairs(
        list(names), list(files), matched.indices, matched.same, identities if is_known else None, matched.num_missing,
        str(source),
    )  # fmt: skip
