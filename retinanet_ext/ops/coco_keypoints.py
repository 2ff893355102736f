"""The keypoints of one object as COCO's files hold them: ``[x, y, visibility] * J``."""

import numbers
from collections.abc import Sequence


def num_labelled(keypoints: Sequence[float]) -> int:
    """How many of the J keypoints of an object, ``3 J`` numbers, are labelled: those with a visibility above 0.

    A visibility that is no number counts as 0: files that were not checked may hold anything.
    """
    return sum(isinstance(v, numbers.Real) and v > 0 for v in keypoints[2::3])
