"""Finds the faces of a dataset once, before training or evaluation, so that no loader needs the detector."""

import logging
import time

from retinanet_ext.d2 import comm, detection_utils
from retinanet_ext.embedding.face_input import FaceInput

PROGRESS_SECONDS = 10.0
_SHOWN = 3

logger = logging.getLogger(__name__)

# (file, name of the detector) -> box of the main face, or None. Repeated evaluations reuse it.
_known: dict[tuple[str, str], list[float] | None] = {}


def with_face_boxes(records: list[dict], face_input: FaceInput, detector: str) -> list[dict]:
    """Copies of records with ``face_box``: XYXY of the main face in the image, or None where none was found.

    The processes of a job share the work. The log says in how many images no face was found. Files that cannot be read
    get no ``face_box``; the mapper meets and reports them again.

    Args:
        records: have ``file_name``.
        face_input: its detector; without one, the records come back as they are.
        detector: INPUT.FACE.DETECTOR, which names the detector.
    """
    if face_input.detector is None:
        return records
    wanted = [r["file_name"] for r in records if (r["file_name"], detector) not in _known]
    rank, processes = comm.get_rank(), comm.get_world_size()
    for found in comm.all_gather(_find(wanted[rank::processes], face_input)):
        _known.update({(file, detector): box for file, box in found.items()})
    boxes = [_known.get((r["file_name"], detector), ...) for r in records]
    without = [r["file_name"] for r, box in zip(records, boxes, strict=True) if box is None]
    level = logging.WARNING if without else logging.INFO
    logger.log(
        level, "INPUT.FACE.DETECTOR %r found no face in %d of %d images%s",
        detector, len(without), len(records),
        f", such as {', '.join(without[:_SHOWN])}; their centre is taken" if without else "",
    )  # fmt: skip
    return [r if box is ... else {**r, "face_box": box} for r, box in zip(records, boxes, strict=True)]


def _find(files: list[str], face_input: FaceInput) -> dict[str, list[float] | None]:
    found, last = {}, time.perf_counter()
    for number, file in enumerate(files):
        try:
            image = detection_utils.read_image(file, format="BGR")
        except Exception as error:  # the types of an unreadable file; the mapper reads it again
            logger.warning("No face is looked for in %s: %s", file, error)
            continue
        box = face_input.find(image)
        found[file] = None if box is None else box.tolist()
        if time.perf_counter() - last >= PROGRESS_SECONDS:
            last = time.perf_counter()
            logger.info("Faces found in %d of this process's %d images", number + 1, len(files))
    return found
