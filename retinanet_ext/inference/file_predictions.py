"""Predicts files: images and videos in, annotated pictures and COCO-format JSON out. Unreadable files are reported."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from retinanet_ext.d2 import ColorMode
from retinanet_ext.data.doctor.image_probe import IMAGE_ERRORS

from .image_pixels import PIXELS_AHEAD, count_pixels
from .predictions_json import PredictionsFile
from .predictor import Predictor, read_input
from .progress_report import ProgressReport
from .result import Result
from .sources import RESULTS_FILE, Source
from .threaded_map import map_ahead

_DEFAULT_FPS = 25.0
# If nothing is found, this many images are predicted once more, to name the best score below the threshold.
_SCORED_AGAIN = 20

logger = logging.getLogger(__name__)


class FilePredictions:
    """One run over all inputs.

    Args:
        predictor: the model.
        output: folder of the results.
        pictures: write annotated pictures and videos too.
        identify: names the detections of a result; None: they have no names.
        embeddings: write the embedding of each detection into the JSON files.

    Attributes:
        skipped: path -> reason, for each input that could not be predicted.
        detections: number of detections so far.
        done: number of images and frames so far.
    """

    def __init__(
        self,
        predictor: Predictor,
        output: Path,
        pictures: bool = True,
        *,
        identify: Callable[[Result], Result] | None = None,
        embeddings: bool = False,
    ) -> None:
        self.predictor = predictor
        self.identify, self.embeddings = identify, embeddings
        self.output = output
        self.pictures = pictures
        self.skipped: dict[Path, str] = {}
        self.detections = 0
        self.done = 0
        self._first_images: list[np.ndarray] = []

    def skip(self, path: Path, reason: str) -> None:
        """Report that a path gives no result."""
        logger.warning("Skipped %s: %s", path, reason)
        self.skipped[path] = reason

    def run_images(self, sources: Sequence[Source]) -> None:
        """Predict image files; their detections go to one ``predictions.json``."""
        waiting = deque()

        def readable(progress):
            images = map_ahead(
                self._read, sources, cost=lambda source: count_pixels(source.path), budget=PIXELS_AHEAD
            )
            for source, image in images:
                if isinstance(image, Exception):
                    self.skip(source.path, f"{type(image).__name__}: {image}")
                    progress.update()
                else:
                    waiting.append(source)
                    yield image

        with (
            self._new_results(self.output / RESULTS_FILE) as results,
            ProgressReport(len(sources), "image") as progress,
        ):
            for result in self._predict(readable(progress)):
                source = waiting.popleft()
                self._count(result)
                results.add(result, str(source.path))
                if self.pictures:
                    result.save(source.picture(self.output))
                progress.update()

    def run_video(self, source: Source) -> None:
        """Predict the frames of a video; their detections go to a JSON file of its own."""
        problems: list[str] = []
        with ExitStack() as stack:
            results = stack.enter_context(self._new_results(source.results(self.output), keep_empty=False))
            capture = cv2.VideoCapture(str(source.path))
            stack.callback(capture.release)
            expected = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            fps = capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
            progress = stack.enter_context(ProgressReport(expected, "frame"))
            writer = None
            for number, result in enumerate(self._predict(self._frames(capture, problems))):
                self._count(result)
                results.add(result, str(source.path), frame=number)
                if self.pictures:
                    if writer is None:
                        writer = _video_writer(source.picture(self.output), fps, result.image.shape)
                        stack.callback(writer.release)
                    # Colours of classes, because those of objects would change from frame to frame.
                    writer.write(result.draw(ColorMode.SEGMENTATION))
                progress.update()
        count = results.images
        if count == 0:
            self.skip(source.path, problems[0] if problems else "no frame of this video can be decoded")
            return
        if count < expected:
            logger.warning("%s: %d of %d frames could be decoded.", source.path, count, expected)

    def score_threshold(self) -> float | None:
        """The score below which the model leaves detections out; None if it does not say."""
        scorer = self._scorer()
        return None if scorer is None else scorer.test_score_thresh

    def _scorer(self):
        """The model, or the part of it that holds the threshold: in models with two stages the box predictor."""
        return next((module for module in self.predictor.model.modules() if hasattr(module, "test_score_thresh")), None)

    def best_score(self) -> tuple[float, int]:
        """The best score in the first images, whatever the threshold, and the number of those images."""
        scorer = self._scorer()
        threshold = scorer.test_score_thresh
        scorer.test_score_thresh = 0.0
        try:
            results = list(self.predictor.predict(self._first_images))
        finally:
            scorer.test_score_thresh = threshold
        return max((float(result.scores.max()) for result in results if len(result)), default=0.0), len(results)

    def _frames(self, capture, problems: list[str]) -> Iterator[np.ndarray]:
        while True:
            success, frame = capture.read()
            if not success:
                return
            try:
                self.predictor.check_image(frame)
            except ValueError as error:
                problems.append(str(error))
                return
            yield frame

    def _read(self, source: Source):
        """(source, uint8 BGR image ``(H, W, 3)`` after its EXIF rotation), or (source, error)."""
        try:
            image, _ = read_input(source.path, self.predictor.cfg.INPUT.MAX_PIXELS)
            self.predictor.check_image(image)
        except (*IMAGE_ERRORS, ValueError) as error:
            return source, error
        return source, image

    def _new_results(self, path: Path, keep_empty: bool = True) -> PredictionsFile:
        names, ids = self.predictor.class_names, self.predictor.category_ids
        return PredictionsFile(path, names, ids, keep_empty, self.embeddings)

    def _predict(self, images: Iterable[np.ndarray]) -> Iterator[Result]:
        results = self.predictor.predict(images)
        return results if self.identify is None else map(self.identify, results)

    def _count(self, result: Result) -> None:
        self.done += 1
        self.detections += len(result)
        if self.detections:
            self._first_images.clear()
        elif len(self._first_images) < _SCORED_AGAIN and self._has_room(result.image):
            self._first_images.append(result.image)

    def _has_room(self, image: np.ndarray) -> bool:
        """Whether an image, and those that are predicted once more, may stay in memory until then."""
        pixels = sum(map(count_pixels, self._first_images))
        return not pixels or pixels + count_pixels(image) <= PIXELS_AHEAD // 4


def _video_writer(path: Path, fps: float, shape: tuple[int, ...]):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (shape[1], shape[0]))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write the video {path}; is the folder writable, does OpenCV have FFmpeg?")
    return writer
