"""From what the model finds in its input to what the user asked for: another image size, masks as pixels."""

from retinanet_ext.d2 import Instances
from retinanet_ext.ops.mask_pasting import encode_pasted_masks, paste_masks
from retinanet_ext.ops.scaled_detections import scaled_detections


def scale_detections(
    detections: Instances, output_height: int, output_width: int, *, encode_masks: bool = False
) -> Instances:
    """Scale detections to another image size, and draw their masks there.

    Args:
        detections: in pixels of ``detections.image_size``: ``pred_boxes``; optionally ``pred_masks`` ``(D, 1, S, S)``
            float, probabilities within the box, and ``pred_keypoints`` ``(D, J, 3)``: x, y and score. Not changed.
        output_height, output_width: the other size in pixels.
        encode_masks: give the masks as ``EncodedMasks`` (run lengths), without all of them as pixels at any time.

    Returns:
        New instances of that size. Boxes are clipped to the image, and detections whose box has no area are removed.
        ``pred_masks`` is bool ``(D, output_height, output_width)``, or ``EncodedMasks``.
    """
    draw = encode_pasted_masks if encode_masks else paste_masks
    return scaled_detections(detections, (output_height, output_width), draw)
