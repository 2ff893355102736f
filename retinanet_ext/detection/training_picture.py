"""A picture during training: ground truth above, predictions below."""

import numpy as np

from retinanet_ext.d2 import (
    Instances,
    Visualizer,
    comm,
    detection_utils,
    detector_postprocess,
    get_event_storage,
    has_event_storage,
)

MAX_BOXES = 20


def is_time_for_a_picture(period: int) -> bool:
    """Whether this process stores a picture in this iteration; ``period`` is at least 1."""
    # Only the main process has a writer that removes the pictures from the storage again.
    return comm.is_main_process() and has_event_storage() and get_event_storage().iter % period == 0


def draw_training_picture(batched_input: dict, detections: Instances, input_format: str, storage) -> None:
    """Store a picture of one training image in ``storage``, from where the writers take it.

    Args:
        batched_input: the image's dict with ``image`` ``(C, H, W)`` and ``instances``.
        detections: best first, in pixels of the network's input.
        input_format: channel order of the image.
        storage: the ``EventStorage``.
    """
    image = detection_utils.convert_image_to_rgb(batched_input["image"].permute(1, 2, 0), input_format)
    detections = detector_postprocess(detections, *image.shape[:2])
    halves = []
    for boxes in (batched_input["instances"].gt_boxes, detections.pred_boxes[:MAX_BOXES]):
        picture = Visualizer(image, None).overlay_instances(boxes=boxes.tensor.detach().cpu().numpy())
        halves.append(picture.get_image())
    name = f"top: ground truth; bottom: the {MAX_BOXES} highest scores"
    storage.put_image(name, np.vstack(halves).transpose(2, 0, 1))
