"""What each proposal of the first stage should predict, and which proposals train the second stage.

N images, R proposals and G objects of an image, S sampled RoIs of an image, K classes.
"""

from collections.abc import Callable, Sequence

import torch

from retinanet_ext.d2 import Boxes, Instances, get_event_storage, has_event_storage
from retinanet_ext.detection.matcher import BACKGROUND, IGNORE

from .sampling import IGNORED, subsample_each

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
        matcher: Callable,
        append_gt: bool,
    ):
        """
        Args:
            num_classes: K, also the class of background.
            batch_size_per_image: S, at most this many RoIs are drawn in an image.
            positive_fraction: at most this part of S is foreground.
            matcher: of proposals ``(R, 4)`` and objects ``(G, 4)``, called as those of ``ANCHOR_MATCHER_REGISTRY``.
            append_gt: add the objects' boxes to the proposals.
        """
        self.num_classes = num_classes
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.matcher = matcher
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
            return torch.full_like(index, self.num_classes), index
        index, state = self.matcher(boxes, target.gt_boxes.tensor)
        classes = target.gt_classes[index].masked_fill_(state == BACKGROUND, self.num_classes)
        return classes.masked_fill_(state == IGNORE, IGNORED), index

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
) -> list[Instances]:
    """The RoIs that are objects, with all that is known about them: in each image the first of the sampled ones.

    Args:
        sampled: N, from :class:`RoISampler`.
        targets: N, with any fields ``gt_...``.
        num_classes: K.

    Returns:
        For each image the foreground RoIs: ``proposal_boxes``, ``objectness_logits``, ``gt_index`` (int64, the index of
        the object in its image), and every ``gt_...`` field of the targets, one row per RoI.
    """
    if not sampled:
        return []
    # All counts are read at once, because reading waits for the device.
    counts = torch.stack([((x.gt_classes >= 0) & (x.gt_classes < num_classes)).sum() for x in sampled]).tolist()
    found = []
    for image, target, count in zip(sampled, targets, counts):
        rows = slice(count)
        kept = Instances(image.image_size)
        kept.proposal_boxes, kept.objectness_logits = image.proposal_boxes[rows], image.objectness_logits[rows]
        kept.gt_index = image.gt_index[rows]
        for name, value in target[kept.gt_index].get_fields().items():
            if name.startswith("gt_"):
                kept.set(name, value)
        found.append(kept)
    return found


def with_visible_keypoints(foreground: Sequence[Instances]) -> list[Instances]:
    """The foreground RoIs of each image that contain a labelled keypoint (visibility above 0) of their object.

    Args:
        foreground: N, with ``proposal_boxes`` and ``gt_keypoints`` ``(F, J, 3)``: x, y in pixels, and visibility.

    Returns:
        N, with all fields but ``gt_masks``, which can be large and which keypoints do not need.
    """
    if not foreground:
        return []
    is_kept = []
    for image in foreground:
        points, boxes = image.gt_keypoints.tensor, image.proposal_boxes.tensor[:, None]  # (F, J, 3), (F, 1, 4)
        x, y, visibility = points.unbind(dim=2)
        is_inside = (x >= boxes[..., 0]) & (x <= boxes[..., 2]) & (y >= boxes[..., 1]) & (y <= boxes[..., 3])
        is_kept.append((is_inside & (visibility > 0)).any(dim=1))
    return _rows_without_masks(foreground, is_kept)


def with_known_identities(foreground: Sequence[Instances], rois_per_object: int) -> list[Instances]:
    """The foreground RoIs whose object has a known identity: at most ``rois_per_object`` of each object, at random.

    Boxes of the same object look alike, and an object with many of them would fill the batch with easy positive pairs.

    Args:
        foreground: N, from :func:`foreground_of`, with ``gt_index`` and ``gt_identities``, int64 ``(F,)``, -1 if
            unknown.
        rois_per_object: at least 1.

    Returns:
        N, with all fields but ``gt_masks``, in the given order.
    """
    if not foreground:
        return []
    is_kept = []
    for image in foreground:
        drawn = torch.randperm(len(image), device=image.gt_index.device)
        objects, order = image.gt_index[drawn].sort(stable=True)
        # The rank of each RoI among those of its object, which stand one after the other.
        rank = torch.arange(len(objects), device=objects.device) - torch.searchsorted(objects, objects)
        is_drawn = torch.zeros_like(objects, dtype=torch.bool)
        is_drawn[drawn[order]] = rank < rois_per_object
        if not image.has("gt_identities"):  # an image without objects need not have the field, so `image` is empty
            image.gt_identities = torch.zeros_like(image.gt_index)
        is_kept.append(is_drawn & (image.gt_identities >= 0))
    return _rows_without_masks(foreground, is_kept)


def _rows_without_masks(foreground: Sequence[Instances], is_kept: Sequence[torch.Tensor]) -> list[Instances]:
    """The rows of each image where ``is_kept`` ``(F,)`` is True, without ``gt_masks``."""
    # Two waits for the device, not one for each field of each image.
    counts = torch.stack([image.sum() for image in is_kept]).tolist()
    rows = torch.cat([torch.arange(len(image), device=image.device) for image in is_kept])
    parts = rows[torch.cat(is_kept)].split(counts)
    return [_without_masks(image)[index] for image, index in zip(foreground, parts)]


def _without_masks(image: Instances) -> Instances:
    fields = {name: value for name, value in image.get_fields().items() if name != "gt_masks"}
    return Instances(image.image_size, **fields)
