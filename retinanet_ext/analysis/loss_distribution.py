"""How the classification loss is distributed over a model's entries (Focal Loss paper, section 5.1, Figure 4).

An entry is one logit: one class of one anchor. All quantities are functions of its margin ``x_t`` (eq. 6): the logit
itself for the class of a foreground anchor, and minus the logit for background.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from retinanet_ext.d2 import CfgNode, DatasetMapper, build_detection_test_loader, detection_utils
from retinanet_ext.data.checked_mapper import CheckedMapper, boxes_only
from retinanet_ext.data.checked_records import load_checked_dicts
from retinanet_ext.detection import FocalRetinaNet
from retinanet_ext.detection.targets import check_ground_truth, label_anchors
from retinanet_ext.losses.focal import check_alpha_gamma, focal_of_margin

NUM_BINS = 2**16
MAX_MARGIN = 32.0
BIN_WIDTH = 2 * MAX_MARGIN / NUM_BINS
# Entries handled at a time: they take some tens of MiB, whatever the number of anchors and classes.
_CHUNK = 2**20


class MarginHistogram:
    """Counts entries and sums their focal losses by margin: all that the curves need, in fixed memory.

    The focal loss without alpha falls strictly with the margin for every gamma >= 0, so one order of the entries serves
    all gammas. Bins are ``BIN_WIDTH`` wide from -``MAX_MARGIN`` to ``MAX_MARGIN``; margins outside join the first or
    the last bin. Counts and sums of the losses are exact (float64), and so are the points of the curves between two
    bins. Inside a bin a straight line replaces the curve. The curve lies below this line, by no more than
    ``(1 + gamma) BIN_WIDTH / 4`` times the bin's share of the loss: less than 0.0008 of that share at gamma 2. In the
    first and the last bin the bound is the share itself; at a margin of 32 the loss is 1e-14.
    """

    def __init__(self, gammas: Sequence[float], device: torch.device | str = "cpu") -> None:
        """
        Args:
            gammas: the focusing exponents, >= 0, each once.
            device: the device of the margins to be added.
        """
        self.gammas = tuple(gammas)
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise ValueError(f"gammas are {list(self.gammas)}; give at least one, and each only once")
        for gamma in self.gammas:
            check_alpha_gamma(-1.0, gamma)
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=device)
        self.sums = torch.zeros(len(self.gammas), NUM_BINS, dtype=torch.float64, device=device)

    def __len__(self) -> int:
        """Number of entries so far."""
        return int(self.counts.sum())

    def add(self, margins: torch.Tensor) -> None:
        """Count entries by their ``margins``: any shape, any float dtype, finite."""
        for chunk in margins.flatten().split(_CHUNK):
            x_t = chunk.double()
            index = ((x_t + MAX_MARGIN) / BIN_WIDTH).floor().clamp(0, NUM_BINS - 1).long()
            self.counts.index_add_(0, index, torch.ones_like(index))
            for sums, gamma in zip(self.sums, self.gammas):
                sums.index_add_(0, index, focal_of_margin(x_t, gamma))

    def curve(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """The cumulative distribution of the normalised loss, as in Figure 4.

        Returns:
            Fraction of the entries, by ascending loss, and their share of the loss, ``(P,)`` each, both from 0 to 1:
            the points of the curve, at the start and after each bin that has entries.

        Raises:
            ValueError: there are no entries, or all their losses are 0; or ``gamma`` is not one of ``gammas``.
        """
        if gamma not in self.gammas:
            raise ValueError(f"gamma is {gamma}; the losses were summed for {', '.join(map(str, self.gammas))}")
        filled = torch.nonzero(self.counts).flatten().flip(0)  # the largest margin has the smallest loss
        counts = self.counts[filled].cpu().numpy()
        sums = self.sums[self.gammas.index(gamma), filled].cpu().numpy()
        if not sums.sum() > 0:
            raise ValueError(f"{len(counts)} bins with entries, whose losses sum to {sums.sum()}: nothing to normalise")
        return tuple(np.concatenate([[0.0], np.cumsum(v) / v.sum()]) for v in (counts, sums))

    def hardest(self, fraction: float, gamma: float) -> float:
        """Share of the loss, 0 to 1, that the hardest ``fraction`` of the entries holds."""
        return 1.0 - float(np.interp(1.0 - fraction, *self.curve(gamma)))


def sorted_curve(margins: torch.Tensor, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve that :meth:`MarginHistogram.curve` approximates, by definition: keeps all entries, sorts their losses.

    Args:
        margins: ``(M,)``, M at least 1.

    Returns:
        Fraction of the entries and share of the loss, ``(M + 1,)`` each.
    """
    losses = focal_of_margin(margins.double(), gamma).sort().values
    share = torch.cat([losses.new_zeros(1), losses.cumsum(0) / losses.sum()])
    return np.linspace(0.0, 1.0, len(share)), share.cpu().numpy()


@dataclass(frozen=True)
class LossDistribution:
    """What :func:`loss_distribution` counted.

    Attributes:
        foreground: entries of the foreground anchors, for their own class only.
        background: entries of the background anchors, for all classes.
        num_images: number of images.
        num_ignored: number of anchors that the matcher ignores; they are in neither histogram, as in training.
    """

    foreground: MarginHistogram
    background: MarginHistogram
    num_images: int
    num_ignored: int

    @property
    def gammas(self) -> tuple[float, ...]:
        return self.foreground.gammas


@torch.no_grad()
def loss_distribution(
    model: FocalRetinaNet, loader: Iterable[list[dict]], gammas: Sequence[float] = (0.0, 0.5, 1.0, 2.0)
) -> LossDistribution:
    """Distribution of the focal loss without alpha, for several gammas on the same predictions.

    Entries of foreground anchors for other classes than their own are left out: the loss counts them as background, but
    their anchors are not background.

    Args:
        model: trained. It runs in evaluation mode with its own matcher, and then returns to its previous mode.
        loader: batches as for training, with ``instances``; see :func:`annotated_loader`.
        gammas: the focusing exponents.

    Raises:
        TypeError: ``model`` is no FocalRetinaNet.
        ValueError: no images; no foreground anchors; or, with the file's name, an input without usable ground truth,
            or predictions that are not finite.
    """
    if not isinstance(model, FocalRetinaNet):
        raise TypeError(f"loss_distribution takes a FocalRetinaNet, got {type(model).__name__}")
    foreground, background = (MarginHistogram(gammas, model.device) for _ in range(2))
    num_images, num_ignored = 0, torch.zeros((), dtype=torch.int64, device=model.device)
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            check_ground_truth(batch, model.num_classes)
            logits, targets = _predict(model, batch)
            classes = targets.labels[targets.image_index, targets.anchor_index]
            foreground.add(logits[targets.image_index, targets.anchor_index, classes])
            background.add(-logits[targets.labels == model.num_classes])
            num_ignored += (targets.labels < 0).sum()
            num_images += len(batch)
    finally:
        model.train(was_training)
    if num_images == 0:
        raise ValueError("the data loader gave no images; a loss distribution needs at least one, with objects")
    if len(foreground) == 0:
        raise ValueError(
            f"none of the anchors of {num_images} images is foreground: there is no foreground loss to show. Take "
            "images with objects, and check that MODEL.ANCHOR_GENERATOR.SIZES and INPUT.MIN_SIZE_TEST fit them"
        )
    return LossDistribution(foreground, background, num_images, int(num_ignored))


def _predict(model, batch):
    """Logits ``(N, R, K)`` of a batch, and its targets."""
    images = model.preprocess_image(batch)
    features, logits, _ = model.network(images.tensor)
    logits = torch.cat(logits, dim=1)
    if not torch.isfinite(logits).all():
        names = ", ".join(str(inputs.get("file_name", "an image without file_name")) for inputs in batch)
        raise ValueError(f"the model's logits are not all finite for {names}; did its training diverge?")
    levels = [level.tensor for level in model.anchor_generator(features)]
    instances = [inputs["instances"].to(model.device) for inputs in batch]
    boxes, classes = [x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances]
    return logits, label_anchors(levels, boxes, classes, model.anchor_matcher, model.num_classes)


def annotated_loader(cfg: CfgNode, dataset_name: str, max_images: int | None = None) -> Iterable[list[dict]]:
    """The images of a dataset, one per batch, resized as for evaluation, with their ground truth.

    Args:
        cfg: the config; as in an evaluation, an unreadable image is an error.
        dataset_name: a registered dataset.
        max_images: use only the first ``max_images`` images; None: all.

    Raises:
        ValueError: the dataset is empty or does not pass its checks; ``max_images`` is less than 1.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images is {max_images}; it must be at least 1")
    records = list(islice(load_checked_dicts(cfg, [dataset_name], filter_empty=False), max_images))
    # A training mapper, because only that keeps the ground truth, but with the augmentations of an evaluation.
    as_tested = detection_utils.build_augmentation(cfg, is_train=False)
    mapper = DatasetMapper(boxes_only(cfg), is_train=True, augmentations=as_tested)
    mapper = CheckedMapper(mapper)
    return build_detection_test_loader(dataset=records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
