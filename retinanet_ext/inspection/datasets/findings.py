"""What a check found: one finding for each thing that is wrong, or worth knowing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retinanet_ext.data.doctor.record_checks import Problem

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
"""``error``: training refuses the data or fails. ``warning``: probably wrong. ``note``: right, but good to know."""

_LONGEST = 300  # characters of what was found: a faulty value may be of any length

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        kind: what it is, in the same words for all findings of a kind.
        severity: one of :data:`SEVERITIES`.
        dataset: name of the dataset.
        file_name: the image, or the annotation file; None if the finding is about the dataset as a whole.
        image_id: of the record.
        annotation: as :class:`Problem` names it: its index, and its id or its line.
        found: what was found.
        legal: what would be right, or what to do.
        box: ``(x0, y0, x1, y1)`` in pixels, for the picture.
    """

    kind: str
    severity: str
    dataset: str
    file_name: str | None
    image_id: object | None
    annotation: str | None
    found: str
    legal: str
    box: Box | None = None

    def __str__(self) -> str:
        words = [f"{self.kind}: {self.dataset}"]
        if self.file_name is not None:
            words.append(f": {self.file_name}")
        if self.image_id is not None:
            words.append(f" (image id {self.image_id})")
        if self.annotation is not None:
            words.append(f", annotation {self.annotation}")
        return f"{''.join(words)}: found {self.found}; right: {self.legal}"


def finding_of(
    problem: Problem, dataset: str, severity: str = ERROR, box: Box | None = None, kind: str | None = None
) -> Finding:
    """The finding that a problem of the checks before training becomes.

    Args:
        problem: of one record, or of one annotation.
        dataset: name of the dataset.
        severity: problems are errors, because training refuses them; what the checks only warn of is a warning.
        box: of the annotation.
        kind: None keeps that of the problem.
    """
    return Finding(
        kind or problem.kind, severity, dataset, problem.file_name, problem.image_id, problem.annotation,
        _shortened(problem.found), _shortened(problem.legal), box,
    )  # fmt: skip


def counts_by_kind(findings: Iterable[Finding]) -> list[tuple[str, str, int]]:
    """``(severity, kind, number)``: the worst severity first, then the most frequent kind."""
    counts = Counter((finding.severity, finding.kind) for finding in findings)
    ordered = sorted(counts.items(), key=lambda item: (SEVERITIES.index(item[0][0]), -item[1], item[0][1]))
    return [(severity, kind, count) for (severity, kind), count in ordered]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings in the order of :func:`counts_by_kind`; those of a kind stay in their order."""
    findings = list(findings)
    rank = {(severity, kind): place for place, (severity, kind, _) in enumerate(counts_by_kind(findings))}
    return sorted(findings, key=lambda finding: rank[finding.severity, finding.kind])


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as JSON values; an image id that JSON does not know becomes a text."""
    rows = []
    for finding in findings:
        row = asdict(finding)
        if not isinstance(row["image_id"], (int, str, type(None))):
            row["image_id"] = str(row["image_id"])
        rows.append(row)
    return rows
