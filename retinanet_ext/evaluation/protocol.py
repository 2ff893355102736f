"""What is evaluated, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .coco_predictions import ImagePredictions
from .ground_truth import FIELDS, GroundTruth

logger = logging.getLogger(__name__)

DEFAULT_MAX_DETS_PER_IMAGE = 100
SHOWN = 10  # values that a message lists


@dataclass
class Protocol:
    """What to evaluate, and how; the arguments of a COCO evaluator.

    Attributes:
        tasks: of `bbox`, `segm` and `keypoints`; None: boxes, and masks and keypoints if they are predicted.
        max_dets_per_image: number of predictions that count per image and class, highest scores first; None: 100.
        use_fast_impl: match by faster-coco-eval, else by pycocotools.
        kpt_oks_sigmas: one for each keypoint; empty: COCO's for 17 keypoints, else 0.05 for each.

    Raises:
        ValueError: an unknown task, or a number of predictions below 1.
    """

    tasks: Sequence[str] | None = None
    max_dets_per_image: int | None = None
    use_fast_impl: bool = True
    kpt_oks_sigmas: Sequence[float] = ()

    def __post_init__(self):
        tasks = ("bbox",) if self.tasks is None else self.tasks
        if isinstance(tasks, str) or not tasks or not set(tasks) <= FIELDS.keys():
            legal = ", ".join(repr(task) for task in FIELDS)
            raise ValueError(f"tasks={tasks!r} cannot be evaluated; legal: None, or a list of {legal}")
        if self.max_dets_per_image is None:
            self.max_dets_per_image = DEFAULT_MAX_DETS_PER_IMAGE
        if not isinstance(self.max_dets_per_image, int) or self.max_dets_per_image < 1:
            raise ValueError(f"max_dets_per_image must be a positive integer, found {self.max_dets_per_image!r}")

    def check_truth(self, truth: GroundTruth) -> None:
        """Refuses ground truth that an evaluation would stop at, before the model runs.

        Raises:
            ValueError: no annotation has what a task needs, or an annotation has a value of a wrong type.
        """
        wrong = truth.wrong_values()
        if wrong:
            shown = "\n".join(f"  {text}" for text in wrong[:SHOWN])
            raise ValueError(
                f"{truth.source}: {len(wrong)} values of annotations cannot be evaluated; the first "
                f"{min(SHOWN, len(wrong))}:\n{shown}\nCorrect them in the file"
            )
        for task in self.tasks or ():
            if not truth.supports(task):
                raise ValueError(
                    f"tasks={tuple(self.tasks)}, but of the {len(truth.coco['annotations'])} annotations of "
                    f"{truth.source} none has `{FIELDS[task]}`. Add it, or leave out {task!r}"
                )

    def tasks_of(self, truth: GroundTruth, predictions: Mapping[Any, ImagePredictions]) -> list[str]:
        """The tasks to evaluate, sorted by name."""
        if self.tasks is not None:
            return sorted(set(self.tasks))
        tasks = ["bbox"]
        predicted = {
            "keypoints": any(found.keypoints is not None for found in predictions.values()),
            "segm": any(found.rles is not None for found in predictions.values()),
        }
        for task in (task for task, is_predicted in predicted.items() if is_predicted):
            if truth.supports(task):
                tasks.append(task)
            else:
                logger.warning(
                    "The task %r is not evaluated: no annotation of %s has `%s`.", task, truth.source, FIELDS[task]
                )
        return tasks
