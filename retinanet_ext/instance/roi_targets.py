"""What each proposal of the first stage should predict, and which proposals train the second stage.

N images, R proposals and G objects of an image, S sampled RoIs of an image, K classes.
"""

from collections.abc import Sequence

import torch

from retinanet_ext.d2 import Boxes, Instances, get_event_storage, has_event_storage
from retinanet_ext.ops import pairwise_iou

from .sampling import subsample_each

# Objectness logit of a ground truth box among the proposals: that of a probability of 1 - 1e-10.
GROUND_TRUTH_LOGIT = 23.02585


class RoISampler:
    """Labels proposals by their IoU with the objects of the image, and draws some of them for training."""

    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        iou_thresholds: Sequence[float],
        iou_labels: Sequence[int],
        append_gt: bool,
    ):
        """
        Args:
            num_classes: K, also the class of background.
            batch_size_per_image: S, at most this many RoIs are drawn in an image.
            positive_fraction: at most this part of S is foreground.
            iou_thresholds: ascending; T thresholds divide the IoUs into T + 1 ranges, each with its lower bound.
            iou_labels: T + 1 labels of these ranges: 1 foreground, 0 background, -1 ignored.
            append_gt: add the objects' boxes to the proposals.

        Raises:
            ValueError: the number of labels is not that of the thresholds plus one, or a label is unknown.
        """
        if len(iou_labels) != len(iou_thresholds) + 1 or not set(iou_labels) <= {-1, 0, 1}:
            raise ValueError(
                f"MODEL.ROI_HEADS.IOU_LABELS is {list(iou_labels)} and IOU_THRESHOLDS is {list(iou_thresholds)}; give "
                "one label more than thresholds, each -1 (ignored), 0 (background) or 1 (foreground)"
            )
        self.num_classes = num_classes
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.iou_thresholds, self.iou_labels = list(iou_thresholds), list(iou_labels)
        self.append_gt = append_gt

    @torch.no_grad()
    def __call__(self, proposals: Sequence[Instances], targets: Sequence[Instances]) -> list[Instances]:
        """
        Args:
            proposals: N, with ``proposal_boxes`` and ``objectness_logits``.
            targets: N, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            For each image its sampled RoIs, foreground first: ``proposal_boxes``, ``objectness_logits``,
            ``gt_classes`` (K is background), ``gt_index`` (the index of the object with the largest IoU; 0 if the
            image has none) and ``gt_boxes`` (its box; zeros if the image has none).
        """
        if self.append_gt:
            proposals = [with_ground_truth(*pair) for pair in zip(proposals, targets)]
        matches = [self._match(x.proposal_boxes.tensor, y) for x, y in zip(proposals, targets)]
        settings = (self.batch_size_per_image, self.positive_fraction, self.num_classes)
        drawn = subsample_each([classes for classes, _ in matches], *settings)
        sampled = [self._rows(*image) for image in zip(proposals, targets, matches, drawn)]
        if has_event_storage() and sampled:
            positives = sum(len(positive) for positive, _ in drawn)
            negatives = sum(len(negative) for _, negative in drawn)
            get_event_storage().put_scalar("roi_head/num_fg_samples", positives / len(sampled))
            get_event_storage().put_scalar("roi_head/num_bg_samples", negatives / len(sampled))
        return sampled

    def _match(self, boxes: torch.Tensor, target: Instances) -> tuple[torch.Tensor, torch.Tensor]:
        """Class of each proposal ``(R,)``, -1 if ignored, and index of the object that it overlaps most ``(R,)``."""
        if not len(target):
            index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            iou = torch.zeros(len(boxes), device=boxes.device)
            classes = torch.full_like(index, self.num_classes)
        else:
            iou, index = pairwise_iou(target.gt_boxes.tensor, boxes).max(dim=0)
            classes = target.gt_classes[index]
        for lower, upper, label in zip(
            [-torch.inf, *self.iou_thresholds], [*self.iou_thresholds, torch.inf], self.iou_labels
        ):
            if label != 1:
                found = self.num_classes if label == 0 else -1
                classes = torch.where((iou >= lower) & (iou < upper), found, classes)
        return classes, index

    def _rows(self, proposals: Instances, target: Instances, match, drawn) -> Instances:
        index = torch.cat(drawn)
        sampled = proposals[index]
        sampled.gt_classes, sampled.gt_index = match[0][index], match[1][index]
        boxes = target.gt_boxes.tensor
        boxes = boxes[sampled.gt_index] if len(boxes) else boxes.new_zeros(len(index), 4)
        sampled.gt_boxes = Boxes(boxes)
        return sampled


def with_ground_truth(proposals: Instances, target: Instances) -> Instances:
    """The proposals of an image, and after them the boxes of its objects."""
    logits = proposals.objectness_logits
    return Instances(
        proposals.image_size,
        proposal_boxes=Boxes(torch.cat([proposals.proposal_boxes.tensor, target.gt_boxes.tensor])),
        objectness_logits=torch.cat([logits, logits.new_full((len(target),), GROUND_TRUTH_LOGIT)]),
    )


def foreground_of(
    sampled: Sequence[Instances], targets: Sequence[Instances], num_classes: int
) -> tuple[list[Instances], torch.Tensor]:
    """The RoIs that are objects, with all that is known about them.

    Args:
        sampled: N, from :class:`RoISampler`.
        targets: N, with any fields ``gt_...``.
        num_classes: K.

    Returns:
        For each image the foreground RoIs: ``proposal_boxes``, ``objectness_logits``, and every ``gt_...`` field of the
        targets, one row per RoI; and a mask of them among all RoIs, ``(N S,)`` bool.
    """
    masks = [(image.gt_classes >= 0) & (image.gt_classes < num_classes) for image in sampled]
    # The foreground comes first. All counts are read at once, because reading waits for the device.
    counts = torch.stack([mask.sum() for mask in masks]).tolist() if masks else []
    found = []
    for image, target, count in zip(sampled, targets, counts):
        rows = slice(count)
        kept = Instances(image.image_size)
        kept.proposal_boxes, kept.objectness_logits = image.proposal_boxes[rows], image.objectness_logits[rows]
        for name, value in target[image.gt_index[rows]].get_fields().items():
            if name.startswith("gt_"):
                kept.set(name, value)
        found.append(kept)
    return found, torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)


def with_visible_keypoints(foreground: Sequence[Instances]) -> list[Instances]:
    """The foreground RoIs of each image that contain a labelled keypoint (visibility above 0) of their object."""
    kept = []
    for image in foreground:
        points, boxes = image.gt_keypoints.tensor, image.proposal_boxes.tensor[:, None]  # (F, J, 3), (F, 1, 4)
        x, y, visibility = points.unbind(dim=2)
        is_inside = (x >= boxes[..., 0]) & (x <= boxes[..., 2]) & (y >= boxes[..., 1]) & (y <= boxes[..., 3])
        kept.append(image[torch.nonzero((is_inside & (visibility >= 1)).any(dim=1)).squeeze(1)])
    return kept
