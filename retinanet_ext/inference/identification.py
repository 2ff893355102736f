"""Names for detections: the nearest person, animal or thing of a gallery, or "unknown"."""

from pathlib import Path

from retinanet_ext.checkpoint.checkpoint_entries import read_entry
from retinanet_ext.embedding.calibration import Calibration
from retinanet_ext.embedding.gallery import Gallery

from .embedder import CALIBRATION
from .predictor import Predictor
from .result import Result


class Identifier:
    """Names the detections of a result. Called with a :class:`Result`, it returns one that is ``identified``.

    Args:
        gallery: of the same model.
        threshold: squared L2 distance, 0 to 4, beyond which a detection is unknown.
    """

    def __init__(self, gallery: Gallery, threshold: float) -> None:
        self.gallery, self.threshold = gallery, threshold

    @classmethod
    def open(cls, predictor: Predictor, gallery: str | Path, threshold: float | None = None) -> "Identifier":
        """
        Args:
            predictor: the model, with embeddings.
            gallery: the file.
            threshold: None: that of the checkpoint's calibration.

        Raises:
            ValueError: the model has no embeddings; neither argument nor checkpoint has a threshold; the gallery is
                missing, empty, damaged or of another model.
        """
        check_has_embeddings(predictor)
        if threshold is None:
            threshold = _calibrated_threshold(predictor)
        opened = Gallery(gallery, fingerprint=predictor.fingerprint, dim=predictor.cfg.MODEL.EMBEDDING.DIM)
        if not len(opened):
            raise ValueError(f"the gallery {gallery} is empty; add someone with: retinanet-ext gallery add")
        return cls(opened, threshold)

    def __call__(self, result: Result) -> Result:
        matches = self.gallery.search(result.embeddings) if len(result) else []
        nearest = [match for (match,) in matches]
        names = [match.name if match.distance <= self.threshold else None for match in nearest]
        return result.identified(names, [match.distance for match in nearest])


def check_has_embeddings(predictor: Predictor) -> None:
    """Refuse a model without embeddings.

    Raises:
        ValueError: names the key that switches them on.
    """
    if predictor.fingerprint is None:
        raise ValueError(
            f"{predictor.cfg.MODEL.META_ARCHITECTURE} of this run has no embeddings (MODEL.EMBEDDING_ON is False); "
            "objects are identified by a model that was trained with MODEL.EMBEDDING_ON True, see docs/masks.md"
        )


def calibration_of(predictor: Predictor) -> Calibration | None:
    """The calibration in the predictor's checkpoint, if it has one.

    Raises:
        ValueError: it is of another version.
    """
    entry = read_entry(predictor.cfg.MODEL.WEIGHTS, CALIBRATION)
    return None if entry is None else Calibration.from_dict(entry, predictor.cfg.MODEL.WEIGHTS)


def _calibrated_threshold(predictor: Predictor) -> float:
    calibration = calibration_of(predictor)
    if calibration is None:
        raise ValueError(
            f"the checkpoint {predictor.cfg.MODEL.WEIGHTS} has no calibrated threshold; name one with "
            "--identify-threshold D, the squared distance (0 to 4) beyond which an object is unknown"
        )
    return float(calibration.threshold)
