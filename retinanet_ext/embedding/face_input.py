"""From an image to the network's input: find the face, crop it, resize it.

The operations, in this order:

1. The region: the face that the detector finds, with INPUT.FACE.MARGIN, widened to the shape of INPUT.FACE.SIZE; or,
   without a detector, or where it finds no face, the centre of the image (INPUT.FACE.CENTER_CROP).
2. The crop of that region, in whole pixels. Beyond the image's border its outermost pixels are repeated. A region that
   is smaller than INPUT.FACE.SIZE is cropped exactly, in one interpolation with step 5, unless 3 or 4 are asked for.
3. INPUT.FACE.PIXELS: a crop of more pixels is shrunk to about that number.
4. INPUT.FACE.JPEG_QUALITY: the crop is written as JPEG in memory, and read again.
5. The resize to INPUT.FACE.SIZE.
6. The conversion to INPUT.FORMAT.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .face_detectors import CASCADE, CascadeDetector

FaceDetector = Callable[[np.ndarray], np.ndarray]
"""Maps an image, uint8 BGR ``(H, W, 3)``, to boxes ``(N, 4)``, XYXY in pixels of that image."""

FORMATS = ("BGR", "RGB", "L")
# Keys of INPUT.FACE that say which part of an image is cropped, and with which pixels.
CROP_KEYS = ("SIZE", "DETECTOR", "CENTER_CROP", "MARGIN", "PIXELS", "JPEG_QUALITY")


@dataclass(frozen=True)
class FaceCrop:
    """``image``: uint8 ``(h, w, C)``. ``found``: whether the detector found a face; True without a detector.
    ``box``: the region of the crop, float64 ``(4,)``, XYXY in pixels of the image; it may extend beyond the image."""

    image: np.ndarray
    found: bool
    box: np.ndarray


class FaceInput:
    """Crops the face of an image to the size of the network's input; see the module for the operations.

    Attributes:
        not_found: number of images in which this object found no face.
    """

    def __init__(
        self,
        size: Sequence[int],
        *,
        detector: FaceDetector | None = None,
        center_crop: float = 1.0,
        margin: float = 0.0,
        image_format: str = "BGR",
        pixels: int = 0,
        jpeg_quality: int = 0,
    ) -> None:
        """
        Args:
            size: height and width of the crops.
            detector: see ``FaceDetector``; None takes the centre of every image.
            center_crop: share of the image's height and width that the centre crop has, above 0, up to 1.
            margin: added on each side of a detected face, as a share of the longer side of its box.
            image_format: "BGR", "RGB" or "L", which has one channel.
            pixels: number of pixels that larger crops are shrunk to before the resize; 0 leaves them.
            jpeg_quality: 1 to 100; 0 leaves out the JPEG.

        Raises:
            ValueError: an argument is out of range; the message names its config key.
        """
        _check(size, center_crop, margin, image_format, pixels, jpeg_quality)
        self.size = (int(size[0]), int(size[1]))
        self.detector = detector
        self.center_crop = center_crop
        self.margin = margin
        self.image_format = image_format
        self.pixels = pixels
        self.jpeg_quality = jpeg_quality
        self.not_found = 0

    @classmethod
    def from_config(cls, cfg, detector: FaceDetector | None = None) -> "FaceInput":
        """
        Args:
            cfg: the keys INPUT.FACE and INPUT.FORMAT.
            detector: the detector of the run that INPUT.FACE.DETECTOR names, if it names one;
                ``retinanet_ext.inference.run_face_detector.face_input`` loads it.

        Raises:
            ValueError: a value is not legal; INPUT.FACE.DETECTOR names a run and ``detector`` is None.
        """
        face = cfg.INPUT.FACE
        if detector is None and face.DETECTOR == CASCADE:
            detector = CascadeDetector()
        elif detector is None and face.DETECTOR:
            raise ValueError(
                f"INPUT.FACE.DETECTOR is {face.DETECTOR!r}, the folder of a run, and its detector was not passed; "
                "call retinanet_ext.inference.run_face_detector.face_input(cfg), which loads it"
            )
        return cls(
            face.SIZE, detector=detector, center_crop=face.CENTER_CROP, margin=face.MARGIN,
            image_format=cfg.INPUT.FORMAT, pixels=face.PIXELS, jpeg_quality=face.JPEG_QUALITY,
        )  # fmt: skip

    def __call__(self, image: np.ndarray) -> FaceCrop:
        """
        Args:
            image: uint8 BGR ``(H, W, 3)``; grey ``(H, W)`` and ``(H, W, 1)`` are taken too.

        Returns:
            Its crop. An image without a found face is counted in ``not_found``, and its centre is cropped.

        Raises:
            ValueError: the array has another shape or dtype, or no pixels.
        """
        image = _as_bgr(image)
        face = self.find(image)
        return self.crop(image, self.region(face, image.shape[:2]), found=self.detector is None or face is not None)

    def without_detector(self) -> "FaceInput":
        """A copy that can be sent to other processes. Its ``detector`` finds nothing, if this one has a detector: the
        faces of these images are known already, see ``face_box`` in ``data/identity_mapper.py``.
        """
        other = copy.copy(self)
        other.detector = None if self.detector is None else _no_faces
        return other

    def find(self, image: np.ndarray) -> np.ndarray | None:
        """Box of the largest and most central face of a BGR image ``(H, W, 3)``, float64 ``(4,)``, XYXY.

        None without a detector, or if it finds nothing, which is counted.
        """
        if self.detector is None:
            return None
        boxes = np.asarray(self.detector(image), dtype=np.float64).reshape(-1, 4)
        if not len(boxes):
            self.not_found += 1
            return None
        return boxes[main_face(boxes, image.shape[:2])]

    def region(self, face: np.ndarray | None, image_size: Sequence[int]) -> np.ndarray:
        """The region to crop, XYXY, float64 ``(4,)``: around the box of a face, or for None in the centre.

        Args:
            face: XYXY ``(4,)`` in pixels.
            image_size: height and width.
        """
        height, width = image_size
        if face is None:
            return _box_around(width / 2, height / 2, width * self.center_crop, height * self.center_crop)
        x0, y0, x1, y1 = (float(v) for v in face)
        border = 2 * self.margin * max(x1 - x0, y1 - y0)
        w, h = x1 - x0 + border, y1 - y0 + border
        aspect = self.size[1] / self.size[0]
        return _box_around((x0 + x1) / 2, (y0 + y1) / 2, max(w, h * aspect), max(h, w / aspect))

    def crop(self, image: np.ndarray, region: np.ndarray, *, angle: float = 0.0, found: bool = True) -> FaceCrop:
        """Steps 2 to 6 of the module's list.

        Args:
            image: uint8 BGR ``(H, W, 3)``.
            region: XYXY ``(4,)`` in pixels; it may extend beyond the image.
            angle: the region is turned by so many degrees around its centre, so that its content turns the other way.
            found: passed on to the result.
        """
        width, height = region[2] - region[0], region[3] - region[1]
        if height <= self.size[0] and width <= self.size[1] and not self.pixels and not self.jpeg_quality:
            # Rounded to whole pixels, the crop of a small image would jump, and a turn before the enlargement would
            # blur it.
            pixels = _warped(image, region, angle, self.size)
        else:
            pixels = self._shrunk(image, region, angle)
        if self.image_format == "RGB":
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        elif self.image_format == "L":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[:, :, None]
        return FaceCrop(pixels, found, np.asarray(region, dtype=np.float64))

    def _shrunk(self, image: np.ndarray, region: np.ndarray, angle: float) -> np.ndarray:
        pixels = _cut(image, region, angle)
        if self.pixels and pixels.shape[0] * pixels.shape[1] > self.pixels:
            scale = (self.pixels / (pixels.shape[0] * pixels.shape[1])) ** 0.5
            pixels = resize(pixels, (max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))))
        if self.jpeg_quality:
            pixels = _through_jpeg(pixels, self.jpeg_quality)
        return resize(pixels, self.size)


def _no_faces(image):
    return np.empty((0, 4))


def main_face(boxes: np.ndarray, image_size: Sequence[int]) -> int:
    """Index of the largest and most central box: its area, less twice the squared distance between the centres.

    Args:
        boxes: XYXY ``(N, 4)`` in pixels, N > 0. Of equals the first one counts.
        image_size: height and width.
    """
    height, width = image_size
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return int(np.argmax(areas - 2 * ((x - width / 2) ** 2 + (y - height / 2) ** 2)))


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize an image ``(H, W, C)`` to ``(h, w, C)``: a side that shrinks averages areas, one that grows is linear.

    Args:
        image: uint8.
        size: h and w.
    """
    height, width = size
    smaller = (min(height, image.shape[0]), min(width, image.shape[1]))
    # OpenCV's area filter averages only if no side grows.
    if smaller != image.shape[:2]:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def _warped(image, region, angle, size):
    """Crop, turn and resize to ``size`` (height, width), in one linear interpolation, so not to a much smaller size."""
    x0, y0, x1, y1 = (float(v) for v in region)
    scale_x, scale_y = (x1 - x0) / size[1], (y1 - y0) / size[0]
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    # The centre of output pixel (i, j) is (i + 0.5) * scale_x - half the width from the region's centre, turned by the
    # angle. OpenCV counts from the centre of the first pixel, hence the halves.
    turn = np.array([[cosine, -sine], [sine, cosine]])
    linear = turn @ np.diag([scale_x, scale_y])
    first = turn @ np.array([(0.5 * scale_x) - (x1 - x0) / 2, (0.5 * scale_y) - (y1 - y0) / 2])
    offset = first + np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - 0.5
    matrix = np.column_stack([linear, offset])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _cut(image, region, angle):
    x0, y0, x1, y1 = (round(float(v)) for v in region)
    width, height = max(1, x1 - x0), max(1, y1 - y0)
    if angle:
        return _warped(image, (x0, y0, x0 + width, y0 + height), angle, (height, width))
    columns = np.clip(np.arange(x0, x0 + width), 0, image.shape[1] - 1)
    rows = np.clip(np.arange(y0, y0 + height), 0, image.shape[0] - 1)
    if columns[0] == x0 and rows[0] == y0 and columns[-1] == x0 + width - 1 and rows[-1] == y0 + height - 1:
        return image[y0 : y0 + height, x0 : x0 + width]
    return image[rows[:, None], columns]


def _box_around(x, y, width, height):
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _through_jpeg(image, quality):
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def _as_bgr(image):
    if image.dtype == np.uint8 and image.size:
        if image.ndim == 3 and image.shape[2] == 3:
            return image
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
            return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    raise ValueError(
        f"an image is a uint8 array (H, W, 3) in BGR order, or grey, with at least one pixel; found {image.dtype} "
        f"{image.shape}"
    )


def _check(size, center_crop, margin, image_format, pixels, jpeg_quality):
    whole = all(isinstance(v, (int, np.integer)) and v > 0 for v in size) and len(size) == 2
    rules = (
        ("SIZE", list(size), whole, "[height, width], two integers above 0"),
        ("CENTER_CROP", center_crop, 0 < center_crop <= 1, "a number above 0, up to 1"),
        ("MARGIN", margin, margin >= 0, "a number from 0"),
        ("PIXELS", pixels, pixels >= 0, "an integer from 0; 0 leaves crops as large as they are"),
        ("JPEG_QUALITY", jpeg_quality, 0 <= jpeg_quality <= 100, "an integer from 0 to 100; 0 leaves out the JPEG"),
    )
    for key, value, is_legal, legal in rules:
        if not is_legal:
            raise ValueError(f"INPUT.FACE.{key} is {value!r}; legal: {legal}")
    if image_format not in FORMATS:
        raise ValueError(f"INPUT.FORMAT is {image_format!r}; legal for FaceNet: {', '.join(FORMATS)}")
