"""Training targets: what every anchor should predict, from anchors and ground truth."""

from collections.abc import Callable, Sequence

import torch

from retinanet_ext.losses import DenseTargets

from .matcher import FOREGROUND, IGNORE


def check_ground_truth(
    batched_inputs: list[dict], num_classes: int, num_classes_key: str = "MODEL.RETINANET.NUM_CLASSES"
) -> None:
    """Refuse ground truth that would silently train a wrong model, or give NaN.

    Dataset checks run once, before training. This check sees the data after the mapper and its augmentations, and also
    protects workflows with their own loaders. It runs on the loader's tensors, before they move to the device.

    Args:
        batched_inputs: as for the meta-architecture.
        num_classes: K; legal classes are 0..K-1. Class K would be background.
        num_classes_key: the config key that sets K, for the error.

    Raises:
        ValueError: no ``instances``; a class out of range; a box without area or not finite. The error names the file.
    """
    for index, inputs in enumerate(batched_inputs):
        name = inputs.get("file_name", f"image {index} of the batch")
        if "instances" not in inputs:
            raise ValueError(
                f"{name}: no 'instances' in a training input; build the loader with a mapper for training "
                "(DatasetMapper(cfg, is_train=True))"
            )
        classes, boxes = inputs["instances"].gt_classes, inputs["instances"].gt_boxes.tensor
        if not len(classes):
            continue
        wrong = (classes < 0) | (classes >= num_classes)
        if wrong.any():
            raise ValueError(
                f"{name}: object {_first(wrong)} has class {int(classes[wrong][0])}; legal are 0..{num_classes - 1} "
                f"({num_classes_key} is {num_classes}; {num_classes} itself would be background)"
            )
        wrong = ~(torch.isfinite(boxes).all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
        if wrong.any():
            raise ValueError(
                f"{name}: object {_first(wrong)} has the box {boxes[wrong][0].tolist()} (x1, y1, x2, y2), which has "
                "no area or is not finite; repair the annotation, or set DATASETS.ON_BAD_ANNOTATION to drop it"
            )


@torch.no_grad()
def label_anchors(
    levels: Sequence[torch.Tensor],
    gt_boxes: Sequence[torch.Tensor],
    gt_classes: Sequence[torch.Tensor],
    matcher: Callable,
    num_classes: int,
) -> DenseTargets:
    """Match the anchors to the ground truth of each of N images.

    Args:
        levels: per level the anchors ``(R_l, 4)``, xyxy in pixels, the same for all images.
        gt_boxes: N tensors ``(G_i, 4)``, xyxy in pixels of the network's input; G_i may be 0.
        gt_classes: N tensors ``(G_i,)`` int64 in 0..num_classes-1.
        matcher: see ``ANCHOR_MATCHER_REGISTRY``.
        num_classes: K, also the label of background.

    Raises:
        ValueError: on CPU, if the matcher gives a foreground anchor the index of a box that its image does not have.
    """
    boxes, classes, counts = _pad(gt_boxes), _pad(gt_classes), [len(boxes) for boxes in gt_boxes]
    matched, state = _match(matcher, levels, boxes, counts)
    labels = torch.full(state.shape, num_classes, dtype=torch.int64, device=state.device)
    labels.masked_fill_(state == IGNORE, IGNORE)
    # This waits for the device: the number of foreground anchors is not known before.
    image_index, anchor_index = torch.nonzero(state == FOREGROUND, as_tuple=True)
    gt_index = matched[image_index, anchor_index]
    if gt_index.device.type == "cpu":  # elsewhere the check would wait for the device again
        _check_index(image_index, gt_index, counts)
    labels[image_index, anchor_index] = classes[image_index, gt_index]
    return DenseTargets(
        labels=labels,
        image_index=image_index,
        anchor_index=anchor_index,
        gt_boxes=boxes[image_index, gt_index],
    )


def _match(matcher, levels: Sequence[torch.Tensor], boxes: torch.Tensor, counts: Sequence[int]):
    """Index and state of every anchor of every image, both ``(N, R)``; ``boxes`` ``(N, G, 4)`` are padded."""
    anchors = levels if getattr(matcher, "per_level", False) else torch.cat(list(levels))
    if hasattr(matcher, "match_batch"):
        return matcher.match_batch(anchors, boxes, counts)
    found = [matcher(anchors, image_boxes[:count]) for image_boxes, count in zip(boxes, counts, strict=True)]
    return tuple(torch.stack(values) for values in zip(*found))


def _check_index(image_index: torch.Tensor, gt_index: torch.Tensor, counts: Sequence[int]) -> None:
    """Refuse box indices ``(M,)`` that their images ``(M,)`` do not have."""
    wrong = torch.nonzero((gt_index < 0) | (gt_index >= torch.tensor(counts)[image_index]))
    if len(wrong):
        image, index = int(image_index[wrong[0]]), int(gt_index[wrong[0]])
        raise ValueError(
            f"the matcher gave a foreground anchor of image {image} of the batch the ground truth box {index}; the "
            f"image has {counts[image]} boxes, numbered from 0. See ANCHOR_MATCHER_REGISTRY for what a matcher returns"
        )


def _pad(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """N tensors ``(G_i, ...)`` as one ``(N, G, ...)``, padded with zeros, in two operations; G is at least 1."""
    longest = max(1, *(len(tensor) for tensor in tensors))
    zeros = tensors[0].new_zeros(longest, *tensors[0].shape[1:])
    pieces = [piece for tensor in tensors for piece in (tensor, zeros[len(tensor) :])]
    return torch.cat(pieces).unflatten(0, (len(tensors), longest))


def _first(mask: torch.Tensor) -> int:
    return int(torch.nonzero(mask)[0])
