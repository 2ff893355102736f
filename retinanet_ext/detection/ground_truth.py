"""Last check of the ground truth before it is trained on.

Dataset checks run once, before training; this one sees what the mapper and its augmentations made of the data, and
protects workflows that bring their own loaders. It runs on the loader's tensors, before they move to the device.
"""

import torch


def check_ground_truth(batched_inputs: list[dict], num_classes: int) -> None:
    """Refuse ground truth that would train wrongly in silence or as NaN.

    Args:
        batched_inputs: as for the meta-architecture.
        num_classes: K; legal classes are 0..K-1. Class K would be background.

    Raises:
        ValueError: no ``instances``; a class out of range; a box without area or not finite. Names the file.
    """
    for index, x in enumerate(batched_inputs):
        name = x.get("file_name", f"image {index} of the batch")
        if "instances" not in x:
            raise ValueError(
                f"{name}: no 'instances' in a training input; build the loader with a mapper for training "
                "(DatasetMapper(cfg, is_train=True))"
            )
        classes, boxes = x["instances"].gt_classes, x["instances"].gt_boxes.tensor
        if not len(classes):
            continue
        wrong = (classes < 0) | (classes >= num_classes)
        if wrong.any():
            raise ValueError(
                f"{name}: object {_first(wrong)} has class {int(classes[wrong][0])}; legal are 0..{num_classes - 1} "
                f"(MODEL.RETINANET.NUM_CLASSES is {num_classes}; {num_classes} itself would be background)"
            )
        wrong = ~(torch.isfinite(boxes).all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
        if wrong.any():
            raise ValueError(
                f"{name}: object {_first(wrong)} has the box {boxes[wrong][0].tolist()} (x1, y1, x2, y2), which has "
                "no area or is not finite; repair the annotation, or set DATASETS.ON_BAD_ANNOTATION to drop it"
            )


def _first(mask: torch.Tensor) -> int:
    return int(torch.nonzero(mask)[0])
