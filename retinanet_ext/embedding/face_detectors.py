"""A detector of faces that needs no trained weights of this package."""

import os

import cv2
import numpy as np

CASCADE = "cascade"
_FILE = "haarcascade_frontalface_default.xml"
# Longer side of the image that the cascade sees. Larger faces than its window cost time and are found anyway.
_MAX_SIDE = 640
_SMALLEST_SHARE = 0.1  # of the image's shorter side


class CascadeDetector:
    """OpenCV's Haar cascade for frontal faces (Viola and Jones, 2001), the file that comes with OpenCV 4."""

    def __init__(self) -> None:
        """
        Raises:
            RuntimeError: this OpenCV has no cascades; OpenCV 5 removed them.
        """
        folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
        path = os.path.join(folder, _FILE)
        if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(path):
            raise RuntimeError(
                f"INPUT.FACE.DETECTOR is {CASCADE!r}, but OpenCV {cv2.__version__} comes without Haar cascades. "
                'Install one that has them (pip install "opencv-python<5"), or set INPUT.FACE.DETECTOR to the folder '
                "of a run of this package that detects faces, or to '' for a fixed centre crop."
            )
        self._cascade = cv2.CascadeClassifier(path)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Boxes of the faces of an image, uint8 BGR ``(H, W, 3)``: float64 ``(N, 4)``, XYXY in pixels, sorted."""
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        scale = min(1.0, _MAX_SIDE / max(grey.shape))
        if scale < 1:
            # A side of at least one pixel, also in an image that is a line.
            size = [max(1, round(side * scale)) for side in grey.shape[::-1]]
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        smallest = max(20, round(_SMALLEST_SHARE * min(grey.shape)))
        found = self._cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(smallest, smallest))
        boxes = np.array(sorted(map(tuple, found)), dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes / scale
