"""A picture during training: ground truth above, predictions below."""

from collections.abc import Callable

import numpy as np

from retinanet_ext.d2 import (
    Instances,
    Visualizer,
    comm,
    detection_utils,
    get_event_storage,
    has_event_storage,
)

MAX_BOXES = 20


def is_time_for_a_picture(period: int) -> bool:
    """Whether this process stores a picture in this iteration; ``period`` is at least 1."""
    # Only the main process has a writer that removes the pictures from the storage again.
    return comm.is_main_process() and has_event_storage() and get_event_storage().iter % period == 0


def draw_training_picture(
    batched_input: dict, detections: Instances, postprocess: Callable[..., Instances], input_format: str
) -> None:
    """Store a picture of one training image in the current ``EventStorage``, from where the writers take it.

    Args:
        batched_input: the image's dict with ``image`` ``(C, H, W)`` and ``instances``: boxes, and masks and keypoints
            if the data have them.
        detections: best first, in pixels of the network's input, as the model finds them.
        postprocess: the model's method: ``(detections, height, width)`` to detections with masks of the image's size.
        input_format: channel order of the image.
    """
    image = detection_utils.convert_image_to_rgb(batched_input["image"].permute(1, 2, 0), input_format)
    detections = postprocess(detections[:MAX_BOXES], *image.shape[:2])
    halves = []
    for prefix, instances in (("gt", batched_input["instances"]), ("pred", detections[:MAX_BOXES])):
        objects = {name: _on_cpu(instances, f"{prefix}_{name}") for name in ("boxes", "masks", "keypoints")}
        halves.append(Visualizer(image, None).overlay_instances(**objects).get_image())
    name = f"top: ground truth; bottom: the {MAX_BOXES} highest scores"
    get_event_storage().put_image(name, np.vstack(halves).transpose(2, 0, 1))


def _on_cpu(instances: Instances, field: str):
    """A field in a form that the visualizers of both engines draw; None if it does not exist."""
    if not instances.has(field):
        return None
    values = instances.get(field)
    if hasattr(values, "rles"):
        return values.rles
    if hasattr(values, "polygons"):
        return values
    return getattr(values, "tensor", values).detach().cpu().numpy()
