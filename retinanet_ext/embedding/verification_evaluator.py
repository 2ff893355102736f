"""The evaluator of verification: gathers embeddings, compares the pairs of the dataset, writes numbers and a page."""

import csv
import io
import json
import logging
import math
import os
from collections import OrderedDict
from typing import Any

import numpy as np

from retinanet_ext.d2 import CfgNode, DatasetCatalog, DatasetEvaluator, comm
from retinanet_ext.evaluation.evaluation_record import write_record
from retinanet_ext.machine.atomic_file import write_atomically

from .harmonic_verification import evaluate_harmonic
from .pairs import Pairs, match_pairs, registered_pairs
from .verification import FARS, VerificationResult, check_finite, check_kinds, embedding_rows, evaluate, pair_distances
from .verification_page import PairTable, verification_page
from .verification_reasons import undefined_reasons

TASK = "verification"
_ROC_POINTS = 500

logger = logging.getLogger(__name__)


class VerificationEvaluator(DatasetEvaluator):
    """Verification on the pairs of a dataset, from the embeddings that a model gives.

    With an output folder it writes ``verification.json`` (all numbers), ``distances.csv`` (a line per pair) and
    ``verification.html`` (a page).
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        cfg: CfgNode | None = None,
        on_missing: str = "error",
        fars: tuple[float, ...] = FARS,
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: registered; its metadata have ``verification_pairs``: ``Pairs``, or a function that returns
                them.
            output_dir: folder of the files; None writes none.
            cfg: its DATASETS.ON_MISSING_PAIR is taken in place of ``on_missing``.
            on_missing: "error" or "count": what happens to pairs with an image that the dataset lacks.
            fars: false-accept rates at which VAL is reported.
            distributed: gather the embeddings of all processes; the main process evaluates.

        Raises:
            ValueError: the dataset has no pairs, or pairs of one kind or in one fold only; or an image is missing.
        """
        self._name, self._output_dir = dataset_name, output_dir
        self._on_missing = on_missing if cfg is None else cfg.DATASETS.ON_MISSING_PAIR
        self._fars, self._distributed = fars, distributed
        self._pairs = _pairs_of(dataset_name)
        images = [record["image_id"] for record in DatasetCatalog.get(dataset_name)]
        matched = match_pairs(self._pairs, images, self._on_missing, dataset_name)
        check_kinds(matched.same)
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._embeddings: dict[Any, np.ndarray] = {}
        self._embeddings_v1: dict[Any, np.ndarray] = {}
        self._files: dict[Any, str] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the embeddings of one batch.

        Args:
            inputs: have ``image_id``, and ``file_name`` for the page. An image that comes again is counted once.
            outputs: have ``embedding``, ``(D,)``, and from ``HarmonicFaceNet`` also ``embedding_v1``.
        """
        for record, output in zip(inputs, outputs, strict=True):
            image = record["image_id"]
            self._embeddings[image] = output["embedding"].detach().to("cpu").float().numpy()
            if "embedding_v1" in output:
                self._embeddings_v1[image] = output["embedding_v1"].detach().to("cpu").float().numpy()
            self._files[image] = record.get("file_name", "")

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """``{"verification": {metric: value}}``, rates in percent; empty in processes other than the main one.

        With embeddings of two models also ``verification_v1``, v1 alone, and ``verification_v1_v2``, where each pair
        counts twice, with either image embedded by v1; see ``harmonic_verification.py``.

        Raises:
            ValueError: an embedding is not finite, or the model gave none for an image; the message names the image.
        """
        parts = [(self._embeddings, self._embeddings_v1, self._files)]
        if self._distributed:
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        embeddings, embeddings_v1, files = ({k: v for part in kind for k, v in part.items()} for kind in zip(*parts))
        rows, matrix = embedding_rows(embeddings)
        images = np.array(list(rows), dtype=object)
        check_finite(matrix, images)
        matched = match_pairs(self._pairs, list(rows), self._on_missing, self._name)
        distances = pair_distances(matrix, matched.indices)
        result = evaluate(distances, matched.same, matched.fold, self._fars)
        for at in result.val_at_far:
            if at.problem:
                logger.warning("Dataset %r: %s.", self._name, at.problem)
        if matched.num_missing:
            logger.warning("Dataset %r: %d pairs are left out: an image is missing.", self._name, matched.num_missing)
        thresholds = result.thresholds[np.searchsorted(result.folds, matched.fold)]
        first, second = images[matched.indices].T
        table = PairTable(first, second, matched.same, matched.fold, distances, thresholds)
        metrics = {**result.metrics(), "num_images": len(rows), "pairs_left_out": matched.num_missing}
        with_v1 = self._evaluate_with_v1(embeddings_v1, rows, matrix, matched)
        tables = {TASK: metrics, **{name: other.metrics() for name, other in with_v1.items()}}
        reasons = {name: undefined_reasons(one) for name, one in {TASK: result, **with_v1}.items()}
        for name, reason in reasons[TASK].items():
            logger.warning("Dataset %r: %s is NaN: %s.", self._name, name, reason)
        if self._output_dir:
            self._write(result, metrics, with_v1, table, files, matched.num_missing)
            write_record(self._output_dir, self._name, tables, reasons)
        return OrderedDict(tables)

    def _evaluate_with_v1(self, embeddings_v1, rows, matrix, matched) -> dict[str, VerificationResult]:
        """The results with v1 by name of the table; empty without embeddings of v1."""
        if not embeddings_v1:
            return {}
        _, matrix_v1 = embedding_rows({image: embeddings_v1[image] for image in rows})
        check_finite(matrix_v1, list(rows))
        found = evaluate_harmonic(matrix, matrix_v1, matched.indices, matched.same, matched.fold, self._fars)
        return {f"{TASK}_v1": found.v1, f"{TASK}_v1_v2": found.v1_v2}

    def _write(self, result, metrics, with_v1, table, files, left_out):
        more = {f"metrics{name.removeprefix(TASK)}": other.metrics() for name, other in with_v1.items()}
        record = {"dataset": self._name, "metrics": metrics, **more, **_record(result)}
        content = json.dumps(_undefined_as_null(record), indent=1, allow_nan=False)
        write_atomically(os.path.join(self._output_dir, "verification.json"), content + "\n")
        write_atomically(os.path.join(self._output_dir, "distances.csv"), _csv(table))
        page = verification_page(self._name, result, table, files, left_out, with_v1)
        write_atomically(os.path.join(self._output_dir, "verification.html"), page)
        logger.info("The page of the verification: %s", os.path.join(self._output_dir, "verification.html"))


def _pairs_of(dataset_name: str) -> Pairs:
    pairs = registered_pairs(dataset_name)
    if pairs is None:
        raise ValueError(
            f"dataset {dataset_name!r} has no verification_pairs in its metadata; register it as FORMAT: identities of "
            "DATASETS.CUSTOM, or set them to Pairs (retinanet_ext/embedding/pairs.py) or a function that returns them"
        )
    return pairs


def _record(result: VerificationResult) -> dict:
    roc = result.roc
    chosen = np.unique(np.linspace(0, len(roc.thresholds) - 1, _ROC_POINTS).round().astype(int))
    return {
        "folds": [
            {"fold": int(fold), "pairs": int(size), "threshold": float(threshold), "accuracy": float(accuracy)}
            for fold, size, threshold, accuracy in zip(
                result.folds, result.fold_sizes, result.thresholds, result.accuracies
            )
        ],
        "val_at_far": [
            {
                "target": at.target, "val": at.val, "val_error": at.val_error, "far": at.far, "threshold": at.threshold,
                "problem": at.problem, "thresholds": at.thresholds.tolist(), "vals": at.vals.tolist(),
                "fars": at.fars.tolist(),
            }
            for at in result.val_at_far
        ],
        "eer_threshold": roc.eer_threshold,
        "roc": {
            "threshold": roc.thresholds[chosen].tolist(),
            "far": roc.far[chosen].tolist(),
            "val": roc.val[chosen].tolist(),
        },
    }  # fmt: skip


def _undefined_as_null(value):
    if isinstance(value, dict):
        return {key: _undefined_as_null(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_undefined_as_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(table: PairTable) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["first", "second", "same", "fold", "distance", "threshold", "accepted"])
    columns = (table.first, table.second, table.same.astype(int), table.fold, table.distances, table.thresholds)
    for row in zip(*columns, table.accepted.astype(int), strict=True):
        writer.writerow([*row[:4], f"{row[4]:.9g}", f"{row[5]:.9g}", row[6]])
    return text.getvalue()
