"""How many same and different pairs each threshold accepts: ROC, AUC, EER, and the thresholds that a rule selects.

A pair is accepted at threshold d if its distance is at most d (FaceNet, equations 5 and 6). P pairs. Only numpy.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Relative. 0.1 * 30 is 3.0000000000000004 and 0.29 * 100 is 28.999999999999996, but 3 and 29 pairs are meant.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Roc:
    """The accepted pairs at each threshold where their number changes.

    Args:
        thresholds: float64 ``(M + 1,)``, ascending: the M distinct distances, preceded by a threshold just below them
            all. Between two neighbours, and at the lower one, the numbers do not change.
        same: int64 ``(M + 1,)``, accepted pairs of one identity.
        different: int64 ``(M + 1,)``, accepted pairs of two identities.
    """

    thresholds: np.ndarray
    same: np.ndarray
    different: np.ndarray

    @classmethod
    def of(cls, distances: np.ndarray, same: np.ndarray) -> "Roc":
        """From distances ``(P,)`` and ``same``, bool ``(P,)``; P >= 1."""
        order = np.argsort(distances, kind="stable")
        return cls.of_sorted(np.asarray(distances, dtype=np.float64)[order], np.asarray(same, dtype=bool)[order])

    @classmethod
    def of_sorted(cls, distances: np.ndarray, same: np.ndarray) -> "Roc":
        """From float64 distances ``(P,)`` in ascending order and ``same``, bool ``(P,)``; P >= 1."""
        # Pairs of equal distance are accepted together.
        last = np.append(np.flatnonzero(distances[1:] > distances[:-1]), len(distances) - 1)
        accepted_same = np.cumsum(same)[last]
        return cls(
            np.append(np.nextafter(distances[0], -np.inf), distances[last]),
            np.append(0, accepted_same),
            np.append(0, last + 1 - accepted_same),
        )

    @property
    def num_same(self) -> int:
        return int(self.same[-1])

    @property
    def num_different(self) -> int:
        return int(self.different[-1])

    @property
    def val(self) -> np.ndarray:
        """VAL at each threshold, ``(M + 1,)``: the share of same pairs that are accepted (equation 7)."""
        return _share(self.same, self.num_same)

    @property
    def far(self) -> np.ndarray:
        """FAR at each threshold, ``(M + 1,)``: the share of different pairs that are accepted (equation 7)."""
        return _share(self.different, self.num_different)

    @cached_property
    def auc(self) -> float:
        """Area under VAL over FAR: the chance that a same pair is closer than a different pair, a tie counting half."""
        widths, heights = np.diff(self.far), (self.val[1:] + self.val[:-1]) / 2
        return float(widths @ heights)

    @cached_property
    def eer(self) -> float:
        """The rate at which FAR equals 1 - VAL, on the straight line between the two neighbouring thresholds."""
        return self._equal_errors[0]

    @cached_property
    def eer_threshold(self) -> float:
        """The lowest threshold at which FAR is at least 1 - VAL."""
        return self._equal_errors[1]

    @cached_property
    def _equal_errors(self) -> tuple[float, float]:
        surplus = self.far + self.val - 1  # rises from -1 to 1
        above = int(np.argmax(surplus >= 0))
        part = -surplus[above - 1] / (surplus[above] - surplus[above - 1])
        rate = self.far[above - 1] + part * (self.far[above] - self.far[above - 1])
        return float(rate), float(self.thresholds[above])

    def accepted(self, threshold: float) -> tuple[int, int]:
        """Same and different pairs whose distance is at most the threshold."""
        index = max(0, int(np.searchsorted(self.thresholds, threshold, side="right")) - 1)
        return int(self.same[index]), int(self.different[index])

    def best_threshold(self) -> float:
        """The threshold of highest accuracy.

        If several intervals of thresholds are equally accurate, the widest is taken, then the lowest. The threshold is
        the middle of it. An interval has no end of its own below the smallest and above the largest distance, so it
        is cut there.
        """
        correct = self.same + self.num_different - self.different
        edges = np.flatnonzero(np.diff(np.concatenate([[False], correct == correct.max(), [False]]).astype(np.int8)))
        starts, ends = edges[::2], edges[1::2]
        widest = int(np.argmax(self.thresholds[np.minimum(ends, len(correct) - 1)] - self.thresholds[starts]))
        return self._middle(starts[widest], ends[widest])

    def threshold_at_far(self, far: float) -> float:
        """The threshold of highest VAL among those whose FAR is at most ``far``.

        All thresholds from the last accepted distance to the next different pair give these answers; the middle is
        taken.
        """
        index = int(np.searchsorted(self.different, allowed_pairs(far, self.num_different), side="right")) - 1
        return self._middle(index, index + 1)

    def threshold_at_val(self, val: float) -> float:
        """The lowest threshold whose VAL is at least ``val``: a distance of one of the pairs."""
        wanted = self.num_same - allowed_pairs(1 - val, self.num_same)
        return float(self.thresholds[np.searchsorted(self.same, wanted, side="left")])

    def _middle(self, start: int, end: int) -> float:
        """Middle of the thresholds from index ``start`` up to, but without, index ``end``."""
        low = float(self.thresholds[start])
        if end >= len(self.thresholds):
            return low + (float(self.thresholds[-1]) - low) / 2
        high = float(self.thresholds[end])
        middle = low + (high - low) / 2
        return middle if middle < high else low


def allowed_pairs(rate: float, pairs: int) -> int:
    """The largest number of pairs that is at most the share ``rate`` of all."""
    return int(np.floor(rate * pairs * (1 + _ROUNDING)))


def _share(accepted: np.ndarray, number: int) -> np.ndarray:
    return accepted / number if number else np.full(len(accepted), np.nan)
