"""What each training step of embeddings logs, and its alarms: no triplet in a batch, a collapsed network.

B images per batch of all processes, D numbers per embedding.
"""

import logging
from collections.abc import Mapping

import torch

from retinanet_ext.d2 import comm, get_event_storage, has_event_storage

logger = logging.getLogger(__name__)

# The mean squared distance between two images of a batch is about twice the spread, so this spread means 0.02: a tenth
# of the paper's margin. Whatever triplets are chosen, their mean loss is then the margin, within about ten percent of
# it. A collapse by batch_hard was seen to go on from 0.008 to 0.004 over 350 steps (docs/studies/facenet_selection).
# Trained embeddings have spreads of 0.3 to 1.
COLLAPSED_SPREAD = 0.01
# Below it for so many steps in a row, the network does not leave by itself; a few such steps are no collapse.
COLLAPSED_STEPS = 100


class TrainingMonitor:
    """Logs statistics of each batch into the event storage and warns of what keeps the triplet loss from working.

    - ``triplets/valid``: triplets that the loss is the mean of
    - ``triplets/active``: share of the candidates with a loss above 0. Candidates are all anchor-positive pairs
      (semi_hard), all anchors with a positive and a negative (batch_hard), or all triplets (batch_all)
    - ``triplets/empty_batches``: batches of this run without a valid triplet, so far
    - ``distance/positive``, ``distance/negative``: mean squared distance over all pairs of images of the batch with the
      same identity and with different ones, whatever the loss
    - ``embedding/spread``: mean squared distance of an embedding from the mean of the batch: 0 if all are equal, 1 if
      they point in all directions

    A statistic that a batch does not have (a distance without such pairs) is left out.
    """

    def __init__(self):
        self.empty_batches = 0
        self.collapsed_steps = 0
        self._said: set[str] = set()

    def observe(
        self, embeddings: torch.Tensor, identities: torch.Tensor, statistics: Mapping[str, torch.Tensor]
    ) -> None:
        """Log a batch and warn if needed. Waits for the device once.

        Args:
            embeddings: ``(B, D)`` of length 1, without a graph.
            identities: int64 ``(B,)``.
            statistics: scalars of the loss.
        """
        if not len(embeddings):
            return
        tensors, names = pair_statistics(embeddings, identities), list(statistics)
        tensors |= {name: torch.as_tensor(statistics[name], device=embeddings.device) for name in names}
        values = torch.stack([tensor.double() for tensor in tensors.values()]).tolist()
        scalars = dict(zip(tensors, values))
        num_positive, num_negative = scalars.pop("num_positive"), scalars.pop("num_negative")
        if not num_positive:
            del scalars["distance/positive"]
        if not num_negative:
            del scalars["distance/negative"]
        if "triplets/valid" in scalars:
            if not scalars["triplets/valid"]:
                self._no_triplets(num_positive, num_negative, scalars)
            scalars["triplets/empty_batches"] = self.empty_batches
        if num_negative:  # images of one person may well be alike
            self._check_collapse(scalars["embedding/spread"])
        if has_event_storage():
            get_event_storage().put_scalars(**scalars)

    def _no_triplets(self, num_positive: float, num_negative: float, scalars: Mapping[str, float]) -> None:
        self.empty_batches += 1
        if not num_negative:
            kind = "all its images are of one identity"
            remedy = "Set DATALOADER.IMAGES_PER_IDENTITY below SOLVER.IMS_PER_BATCH"
        elif not num_positive:
            kind = "it has one image per identity"
            remedy = "Set DATALOADER.IMAGES_PER_IDENTITY to 2 or more, and check that identities have several images"
        else:
            kind = "no negative lies where MODEL.EMBEDDING.LOSS.SELECTION and MARGIN look for one"
            remedy = (
                f"Mean squared distances are {scalars['distance/positive']:.3g} between images of the same identity "
                f"and {scalars['distance/negative']:.3g} between others. If the second is far larger, the batch is too "
                "easy: use a larger SOLVER.IMS_PER_BATCH. If not, the network does not tell identities apart yet: set "
                "MODEL.EMBEDDING.WARMUP.LOSS softmax"
            )
        if kind not in self._said:
            self._said.add(kind)
            _warn(
                "a batch has no valid triplet, so its loss is 0: %s. %s. This is said once; triplets/empty_batches "
                "counts such batches.",
                kind,
                remedy,
            )

    def _check_collapse(self, spread: float) -> None:
        self.collapsed_steps = self.collapsed_steps + 1 if spread < COLLAPSED_SPREAD else 0
        if self.collapsed_steps == COLLAPSED_STEPS:
            _warn(
                "the embedding has collapsed: for %d steps all images have had almost the same embedding "
                "(embedding/spread %.1e, below %g), so that a triplet loss stays at its margin. Start anew with a "
                "lower SOLVER.BASE_LR, a larger SOLVER.IMS_PER_BATCH, MODEL.EMBEDDING.LOSS.SELECTION semi_hard instead "
                "of batch_hard, or MODEL.EMBEDDING.WARMUP.LOSS softmax.",
                COLLAPSED_STEPS,
                spread,
                COLLAPSED_SPREAD,
            )


def _warn(*message) -> None:
    if comm.is_main_process():  # all processes see the same joint batch
        logger.warning(*message)


def pair_statistics(embeddings: torch.Tensor, identities: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics over all pairs of a batch, without its ``(B, B)`` distances, as float64 scalars.

    The squared distances within a group of n vectors sum to 2 n sum |x|^2 - 2 |sum x|^2. Here x is relative to the mean
    of the batch, so that little is lost where all vectors are similar.

    Args:
        embeddings: ``(B, D)``; B above 0.
        identities: int64 ``(B,)``.

    Returns:
        ``distance/positive`` and ``distance/negative``: mean squared distances over ordered pairs of two images;
        ``num_positive`` and ``num_negative``: numbers of these pairs; ``embedding/spread``.
    """
    centred = embeddings.double()
    centred = centred - centred.mean(dim=0)
    squares = centred.square().sum(dim=1)
    _, groups, sizes = identities.unique(return_inverse=True, return_counts=True)
    sums = centred.new_zeros((len(sizes), centred.shape[1])).index_add_(0, groups, centred)
    group_squares = squares.new_zeros(len(sizes)).index_add_(0, groups, squares)
    within = (2 * sizes * group_squares - 2 * sums.square().sum(dim=1)).sum().clamp(min=0)
    count = len(centred)
    between = 2 * count * squares.sum() - within
    num_positive = (sizes * (sizes - 1)).sum().double()
    num_negative = count * (count - 1) - num_positive
    return {
        "distance/positive": within / num_positive,
        "distance/negative": between / num_negative,
        "num_positive": num_positive,
        "num_negative": num_negative,
        "embedding/spread": squares.mean(),
    }
