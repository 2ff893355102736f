"""A trained model for SAHI, which finds small objects in large images by predicting on slices of them."""

import numpy as np
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
from sahi.utils.cv import get_coco_segmentation_from_bool_mask

from .predictor import Predictor
from .result import Result


class SahiModel(DetectionModel):
    """Lets SAHI predict with a :class:`Predictor`, on either engine::

        from sahi.predict import get_sliced_prediction

        model = SahiModel(retinanet_ext.load("output/quick"))
        result = get_sliced_prediction("photo.jpg", model, slice_height=512, slice_width=512)

    Categories have the class names of the training data, and the class index, from 0, as their id. Masks become
    polygons, which is what SAHI keeps; a detection whose mask is too small for a polygon is left out, as by SAHI's own
    models. (SAHI's model type ``detectron2`` also takes our configs and checkpoints, on Detectron2 and after ``import
    retinanet_ext.detection``.)
    """

    def __init__(self, predictor: Predictor, **kwargs):
        """
        Args:
            predictor: the trained model, as :func:`retinanet_ext.load` returns it. Its device and its image size hold.
            kwargs: further arguments of SAHI's ``DetectionModel``, such as ``category_remapping``. Without
                ``confidence_threshold``, the threshold of the predictor holds.
        """
        kwargs.setdefault("confidence_threshold", 0.0)
        super().__init__(model=predictor, device=predictor.device.type, **kwargs)

    def set_model(self, model: Predictor, **kwargs) -> None:
        self.model = model
        self.category_mapping = {str(index): name for index, name in enumerate(model.class_names)}

    @property
    def category_names(self) -> list[str]:
        return list(self.category_mapping.values())

    @property
    def num_categories(self) -> int:
        return len(self.category_mapping)

    def perform_inference(self, image: np.ndarray) -> None:
        """Predict on an RGB image, uint8 ``(H, W, 3)``."""
        self._original_predictions = self.model(np.ascontiguousarray(image[:, :, ::-1]))

    def _create_object_prediction_list_from_original_predictions(self, shift_amount_list=None, full_shape_list=None):
        result = self._original_predictions
        shift = fix_shift_amount_list(shift_amount_list or [[0, 0]])[0]
        shapes = fix_full_shape_list(full_shape_list)
        height, width = result.image_size
        boxes = result.pred_boxes.tensor.clone()
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        polygons = _polygons(result)
        predictions = [
            ObjectPrediction(
                bbox=box, category_id=index, category_name=name, score=score, segmentation=segmentation,
                shift_amount=shift, full_shape=shapes[0] if shapes else [height, width],
            )
            for box, index, name, score, segmentation in zip(
                boxes.tolist(), result.pred_classes.tolist(), result.names, result.scores.tolist(), polygons
            )
            # SAHI refuses boxes without area.
            if box[2] > box[0] and box[3] > box[1] and score >= self.confidence_threshold and segmentation != []
        ]  # fmt: skip
        self._object_prediction_list_per_image = [predictions]


def _polygons(result: Result) -> list[list[list[float]] | None]:
    """For each detection its polygons, [] if its mask has none; None for detections without masks."""
    if not result.has("pred_masks"):
        return [None] * len(result)
    return [get_coco_segmentation_from_bool_mask(mask.numpy()) for mask in result.pred_masks]
