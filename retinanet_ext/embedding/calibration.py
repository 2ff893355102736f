"""The threshold for a false-accept rate that the user names, with the interval that the user's pairs give.

P pairs. Only numpy and scipy.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from scipy.stats import beta

from .roc import Roc, allowed_pairs
from .verification import check_distances, check_kinds

VERSION = 1
SAME, DIFFERENT, UNSURE = "same", "different", "unsure"
BOUNDS = ("point", "upper")
CONFIDENCE = 0.95
_RESAMPLES = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What a checkpoint keeps under ``calibration``. Rates are 0 to 1, distances squared L2.

    Args:
        threshold: pairs up to this distance are accepted.
        far_target: the false-accept rate that was asked for.
        far: that of the user's pairs at the threshold.
        far_interval: 95 % interval of ``far``, see :func:`calibrate`.
        far_interval_exact: the part of it that takes pairs for independent.
        val: share of the user's same pairs that are accepted.
        num_same, num_different: the user's pairs.
        unsure: up to ``unsure[0]``, the threshold, the answer is "same", above ``unsure[1]`` "different".
        miss_target: largest share of same pairs that may be answered "different".
        bound: "point" or "upper", what of the FAR meets the target.
        groups: by name: ``num_same``, ``num_different``, ``far``, ``far_interval``, ``val`` at the threshold, and
            ``threshold``, the one that the group alone would get (None: too few pairs).
        input: how the faces were cropped; see ``Embedder.input``.
        created_from: the pairs, in words.
    """

    threshold: float
    far_target: float
    far: float
    far_interval: tuple[float, float]
    far_interval_exact: tuple[float, float]
    val: float
    num_same: int
    num_different: int
    unsure: tuple[float, float]
    miss_target: float
    bound: str = "point"
    groups: dict[str, dict] = field(default_factory=dict)
    input: str = ""
    created_from: str = ""
    version: int = VERSION

    def answer(self, distance: float) -> str:
        """"same", "unsure" or "different"."""
        if not np.isfinite(distance):
            raise ValueError(f"a distance of {distance}; the embeddings are not finite")
        return SAME if distance <= self.unsure[0] else UNSURE if distance <= self.unsure[1] else DIFFERENT

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which a safe reader of checkpoints takes."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the checkpoint") -> "Calibration":
        """
        Raises:
            ValueError: keys are missing, or the version is another one.
        """
        needed = {item.name for item in fields(cls)}
        if values.get("version") != VERSION or not needed <= values.keys():
            absent = ", ".join(sorted(needed - values.keys())) or "nothing"
            raise ValueError(
                f"the calibration in {where} has version {values.get('version')!r} and lacks {absent}; this package "
                f"reads version {VERSION}. Calibrate again: retinanet-ext calibrate"
            )
        pairs = ("far_interval", "far_interval_exact", "unsure")
        return cls(**{key: tuple(values[key]) if key in pairs else values[key] for key in needed})


def calibrate(
    distances: np.ndarray,
    same: np.ndarray,
    far: float,
    *,
    miss: float = 0.05,
    bound: str = "point",
    identities: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    input: str = "",
    created_from: str = "",
) -> Calibration:
    """Select the threshold of highest VAL whose FAR meets the target.

    The interval of the FAR is the exact binomial one (Clopper and Pearson), which holds although the threshold was
    selected on these pairs: it bounds the FAR between the last accepted and the next different pair. It takes pairs
    for independent. Pairs share images and people, so with ``identities`` it is widened, where needed, to that of a
    bootstrap over identities.

    Args:
        distances: ``(P,)``.
        same: bool ``(P,)``.
        far: the target, above 0, below 1.
        miss: bounds the band of "unsure": its upper end is the lowest distance above which at most this share of the
            same pairs lies (at least the threshold).
        bound: "point": the FAR of the pairs meets the target; "upper": the upper end of the exact interval does.
        identities: int ``(P, 2)``, the identity of each image of a pair.
        groups: ``(P,)``, the group of each pair, "" for none.
        seed: of the bootstrap.
        input, created_from: kept; see :class:`Calibration`.

    Raises:
        ValueError: the pairs are too few to select a threshold for this FAR; a distance is not finite; all pairs are of
            one kind; an argument is out of range.
    """
    distances, same = check_distances(distances), check_kinds(np.asarray(same))
    _check_arguments(far, miss, bound)
    roc = Roc.of(distances, same)
    allowed = allowed_accepts(far, roc.num_different, bound)
    _warn_about_counts(roc, far, miss)
    threshold = roc.threshold_at_far(allowed / roc.num_different)
    accepted_same, accepted_different = roc.accepted(threshold)
    exact = binomial_interval(accepted_different, roc.num_different)
    interval = exact
    if identities is not None:
        resampled = _bootstrap(distances[~same] <= threshold, np.asarray(identities)[~same], seed)
        interval = (min(exact[0], resampled[0]), max(exact[1], resampled[1]))
    return Calibration(
        threshold=threshold, far_target=float(far), far=accepted_different / roc.num_different,
        far_interval=interval, far_interval_exact=exact, val=accepted_same / roc.num_same, num_same=roc.num_same,
        num_different=roc.num_different, unsure=(threshold, max(threshold, roc.threshold_at_val(1 - miss))),
        miss_target=float(miss), bound=bound, groups=_groups(distances, same, groups, threshold, far, bound),
        input=input, created_from=created_from,
    )  # fmt: skip


def allowed_accepts(far: float, different: int, bound: str = "point") -> int:
    """The number of different pairs, of ``different``, that may be accepted for the FAR to meet the target.

    Raises:
        ValueError: they are too few: under "point" a single accepted pair exceeds the target, under "upper" even none
            leaves the upper end of the interval above it.
    """
    allowed = allowed_pairs(far, different)
    if bound == "point":
        needed = int(np.ceil(1 / far * (1 - 1e-12)))
        reason = f"one accepted pair is already {1 / max(1, different):.2g}"
    else:
        needed = int(np.ceil(np.log((1 - CONFIDENCE) / 2) / np.log1p(-far)))
        upper = binomial_interval(0, different)[1]
        reason = f"with none accepted, the {CONFIDENCE:.0%} interval still reaches {upper:.2g}"
        while allowed > 0 and binomial_interval(allowed, different)[1] > far:
            allowed -= 1
    if different < needed:
        raise ValueError(
            f"{different} different pairs cannot support a FAR of {far:g}: {reason}; it takes at least {needed}, and "
            f"by the rule of three {pairs_for(far)}. Bring more images, or name a higher FAR"
        )
    return allowed


def pairs_for(far: float) -> int:
    """Different pairs that support a FAR by the rule of three: with none accepted, it is below at 95 % confidence."""
    return int(np.ceil(3 / far * (1 - 1e-12)))


def binomial_interval(accepted: int, number: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact interval (Clopper and Pearson) of a rate: ``accepted`` of ``number`` independent pairs were accepted."""
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, accepted, number - accepted + 1) if accepted else 0.0
    high = beta.ppf(1 - tail, accepted + 1, number - accepted) if accepted < number else 1.0
    return float(low), float(high)


def _bootstrap(accepted, identities, seed, confidence=CONFIDENCE):
    """Percentile interval of the share of accepted different pairs, over resampled identities.

    An identity that is drawn w times counts w times, so a pair of two identities counts the product.
    """
    people, rows = np.unique(identities, return_inverse=True)
    cells, cell_of = np.unique(np.sort(rows.reshape(-1, 2), axis=1), axis=0, return_inverse=True)
    pairs = np.bincount(cell_of.ravel(), minlength=len(cells))
    hits = np.bincount(cell_of.ravel(), weights=accepted, minlength=len(cells))
    random, rates = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        times = random.multinomial(len(people), np.full(len(people), 1 / len(people)))
        weights = times[cells[:, 0]] * times[cells[:, 1]]
        if total := weights @ pairs:
            rates.append(weights @ hits / total)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail]) if rates else (0.0, 1.0)
    return float(low), float(high)


def _groups(distances, same, groups, threshold, far, bound):
    found = {}
    names = np.asarray([] if groups is None else groups, dtype=object)
    for name in sorted(set(names) - {""}):
        chosen = names == name
        accepted = distances[chosen] <= threshold
        kinds = same[chosen]
        num_same, num_different = int(kinds.sum()), int((~kinds).sum())
        hits = int(accepted[~kinds].sum())
        interval = binomial_interval(hits, num_different) if num_different else (0.0, 1.0)
        found[str(name)] = {
            "num_same": num_same,
            "num_different": num_different,
            "far": hits / num_different if num_different else None,
            "far_interval": list(interval),
            "val": float(accepted[kinds].mean()) if num_same else None,
            "threshold": _threshold_of_group(distances[chosen], kinds, far, bound),
        }
        if interval[0] > far:
            logger.warning(
                "Group %r: the FAR at the threshold is %.2g (95 %%: %.2g to %.2g), above the target of %g.",
                name, hits / num_different, *interval, far,
            )  # fmt: skip
    return found


def _threshold_of_group(distances, same, far, bound):
    if not same.any():
        return None
    try:
        allowed = allowed_accepts(far, int((~same).sum()), bound)
    except ValueError:
        return None
    return Roc.of(distances, same).threshold_at_far(allowed / int((~same).sum()))


def _check_arguments(far, miss, bound):
    for name, rate in (("false-accept rate", far), ("miss rate", miss)):
        if not 0 < rate < 1:
            raise ValueError(f"a {name} of {rate}; legal: above 0, below 1")
    if bound not in BOUNDS:
        raise ValueError(f"bound is {bound!r}; legal values: {', '.join(BOUNDS)}")


def _warn_about_counts(roc, far, miss):
    if roc.num_different < pairs_for(far):
        logger.warning(
            "%d different pairs are few for a FAR of %g: the rule of three asks for %d. Look at the interval.",
            roc.num_different, far, pairs_for(far),
        )  # fmt: skip
    if allowed_pairs(miss, roc.num_same) < 1:
        logger.warning(
            "%d same pairs cannot measure a miss rate of %g: the band of unsure answers reaches to the largest "
            "distance of a same pair.",
            roc.num_same, miss,
        )  # fmt: skip
