"""A verification as one HTML page: ROC, distances, folds, and the hardest mistakes as pictures.

P pairs.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from retinanet_ext.d2 import detection_utils
from retinanet_ext.report.document import Block, Facts, Figure, Heading, Paragraph, Pictures, Table, Warning
from retinanet_ext.report.formats import NOTHING

from .verification import VerificationResult

MISTAKES = 12  # of each kind that are shown
_PICTURE_HEIGHT = 112
_JPEG_QUALITY = 80
_WITH_V1 = (
    "The same pairs with both images embedded by the older model (v1), and with one by each (v1_v2), where a pair "
    "counts twice, with either image in v1. All else on this page is of the new model alone."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairTable:
    """The pairs of a verification. Arrays are ``(P,)``.

    Args:
        first, second: image ids.
        same: bool, whether both images show one identity.
        fold: int64.
        distances: float64.
        thresholds: float64, that of the pair's fold.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    distances: np.ndarray
    thresholds: np.ndarray

    @property
    def accepted(self) -> np.ndarray:
        """Whether each pair is answered "same"."""
        return self.distances <= self.thresholds

    def hardest(self, same: bool, number: int = MISTAKES) -> np.ndarray:
        """Indices of the wrong answers about pairs of one kind, farthest from the threshold first."""
        wrong = np.flatnonzero((self.same == same) & (self.accepted != same))
        beyond = self.distances[wrong] - self.thresholds[wrong]
        return wrong[np.argsort(-beyond if same else beyond, kind="stable")[:number]]


def verification_page(
    dataset: str,
    result: VerificationResult,
    table: PairTable,
    files: Mapping[str, str],
    left_out: int = 0,
    with_v1: Mapping[str, VerificationResult] | None = None,
) -> str:
    """The page as HTML.

    Args:
        dataset: its name.
        result: of ``table``.
        table: all pairs.
        files: path of the file of each image id; an image without one gets no picture.
        left_out: number of pairs that are not in the table, because an image is missing.
        with_v1: results of the same pairs with an older model, by name; see ``harmonic_verification.py``.
    """
    # Here, because matplotlib takes long to import, and a training run needs it only now.
    from retinanet_ext.report.html_page import to_html
    from retinanet_ext.report.verification_plots import draw_distances, draw_roc

    blocks: list[Block] = [*_warnings(result, left_out), Facts(_facts(result, left_out))]
    if with_v1:
        blocks += [Heading("Beside an older model"), Paragraph(_WITH_V1), _v1_table(result, with_v1)]
    at_threshold = result.roc.accepted(result.threshold)
    point = (at_threshold[1] / result.roc.num_different, at_threshold[0] / result.roc.num_same)
    marks = [
        (at.far if at.far > 0 else at.target, at.val, at.val_error, f"{at.target:g}")
        for at in result.val_at_far
        if not (np.isnan(at.val) or np.isnan(at.far))
    ]
    roc = draw_roc(result.roc.far, result.roc.val, result.roc.num_different, marks, point)
    distances = draw_distances(table.distances[table.same], table.distances[~table.same], result.threshold)
    blocks += [
        Heading("ROC and distances"),
        Figure("roc.svg", f"ROC. Area under it: {100 * result.roc.auc:.2f} %.", roc),
        Figure("distances.svg", "Distances; pairs up to the threshold are answered “same”.", distances),
        Heading("VAL at a false-accept rate"),
        Paragraph(
            "The threshold of each fold is selected on the other folds, for the FAR asked for; VAL and the measured "
            "FAR are means over the held-out folds, ± the standard error of the mean."
        ),
        _far_table(result),
        Heading("Folds"),
        Paragraph("The threshold of a fold is the one of highest accuracy on the other folds."),
        _fold_table(result),
        *_mistakes(True, table, files),
        *_mistakes(False, table, files),
    ]
    return to_html(f"Verification of {dataset}", blocks)


def _warnings(result, left_out):
    problems = [at.problem for at in result.val_at_far if at.problem]
    if left_out:
        problems.insert(0, f"{left_out} pairs are left out, because an image of theirs is missing")
    return [Warning("Read the numbers with care", problems)] if problems else []


def _facts(result, left_out):
    facts = [
        ("Accuracy", f"{_with_error(result.accuracy, result.accuracy_error)} over {len(result.folds)} folds"),
        ("Threshold", f"{result.threshold:.4f}, squared L2 distance, mean over folds"),
    ]
    for at in result.val_at_far:
        facts.append((f"VAL at FAR {at.target:g}", _with_error(at.val, at.val_error)))
    facts += [
        ("Area under the ROC", f"{100 * result.roc.auc:.2f} %"),
        ("Equal error rate", f"{100 * result.roc.eer:.2f} %, at threshold {result.roc.eer_threshold:.4f}"),
        ("Pairs", f"{result.roc.num_same:,} same, {result.roc.num_different:,} different, {left_out:,} left out"),
    ]
    return facts


def _far_table(result):
    rows = [
        (
            f"{at.target:g}",
            _with_error(at.val, at.val_error, ""),
            NOTHING if np.isnan(at.far) else f"{at.far:.2g}",
            NOTHING if np.isnan(at.threshold) else f"{at.threshold:.4f}",
        )
        for at in result.val_at_far
    ]
    return Table(("FAR asked for", "VAL (%)", "measured FAR", "threshold"), rows)


def _v1_table(result, with_v1):
    header = ("entry of results.json", "accuracy (%)", "threshold")
    header += tuple(f"VAL at FAR {at.target:g} (%)" for at in result.val_at_far)
    rows = [
        (
            name,
            _with_error(other.accuracy, other.accuracy_error, ""),
            f"{other.threshold:.4f}",
            *(_with_error(at.val, at.val_error, "") for at in other.val_at_far),
            _percent(other.roc.auc, ""),
        )
        for name, other in {"verification": result, **with_v1}.items()
    ]
    return Table((*header, "AUC (%)"), rows)


def _fold_table(result):
    targets = result.val_at_far
    header = ("fold", "pairs", "threshold", "accuracy (%)", *(f"VAL at FAR {at.target:g} (%)" for at in targets))
    rows = [
        (
            str(number),
            f"{result.fold_sizes[row]:,}",
            f"{result.thresholds[row]:.4f}",
            _percent(result.accuracies[row], ""),
            *(_percent(at.vals[row], "") for at in targets),
        )
        for row, number in enumerate(result.folds)
    ]
    return Table(header, rows)


_MISTAKES = {
    True: ("False rejects", "same pairs answered “different”, the farthest above the threshold first"),
    False: ("False accepts", "different pairs answered “same”, the farthest below the threshold first"),
}


def _mistakes(same, table, files):
    title, explanation = _MISTAKES[same]
    count = int(((table.same == same) & (table.accepted != same)).sum())
    if not count:
        return [Heading(title), Paragraph("None.")]
    chosen = table.hardest(same)
    shown = "" if count == len(chosen) else f"; {len(chosen)} of {count:,} are shown"
    items = []
    for pair in chosen:
        first, second = table.first[pair], table.second[pair]
        pictures = [thumbnail(files.get(image, "")) for image in (first, second)]
        text = f"distance {table.distances[pair]:.4f}, threshold {table.thresholds[pair]:.4f}, fold {table.fold[pair]}"
        items.append((pictures, (str(first), str(second), text)))
    return [Heading(title), Paragraph(f"{count:,} {explanation}{shown}."), Pictures(items)]


def thumbnail(path: str, height: int = _PICTURE_HEIGHT) -> bytes:
    """A small JPEG of an image file; grey with a cross if it cannot be read."""
    try:
        image = detection_utils.read_image(path, format="BGR")
    except Exception as error:  # any type: a picture is no reason to lose the results
        logger.warning("No picture of %r: %s", path, error)
        image = np.full((height, height, 3), 128, np.uint8)
        cv2.line(image, (0, 0), (height, height), (90, 90, 90), 2)
        cv2.line(image, (0, height), (height, 0), (90, 90, 90), 2)
    width = max(1, min(3 * height, round(image.shape[1] * height / image.shape[0])))
    filter = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_LINEAR  # enlarged, the first shows squares
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=filter)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _with_error(mean, error, unit=" %"):
    if np.isnan(mean) or np.isnan(error):
        return _percent(mean, unit)
    return f"{100 * mean:.2f} ± {100 * error:.2f}{unit}"


def _percent(value, unit=" %"):
    return NOTHING if np.isnan(value) else f"{100 * value:.2f}{unit}"
