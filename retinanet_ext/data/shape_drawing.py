"""Outlines, keypoints and pixels of one generated image of shapes.

Coordinates are continuous image coordinates in pixels, x right and y down; pixel i covers [i, i + 1).
Images are uint8 BGR ``(size, size, 3)``.
"""

from dataclasses import dataclass

import cv2
import numpy as np

CLASS_NAMES = ("circle", "rectangle", "triangle", "star", "cross")
# Each class is rarer than the one before it, the last about eight times rarer than the first.
CLASS_FREQUENCIES = (0.46, 0.25, 0.14, 0.09, 0.06)
# Directions along the shape's axes, which turn with the shape; see `MAX_TILT_DEGREES`.
KEYPOINT_NAMES = ("center", "up", "right", "down", "left")
# Pairs of 1-based keypoint numbers, as COCO stores a skeleton.
SKELETON = ((1, 2), (1, 3), (1, 4), (1, 5))

EMPTY_FRACTION = 0.1  # images without any object
MAX_OBJECTS = 8
# Outlines of no class. As distractors they come in the hues of the classes, so that colour alone does not tell them.
DISTRACTOR_NAMES = ("half disc", "chevron")
MIN_OBJECT_SIZE = 12.0  # pixels, the longest side of the shape before it is tilted
MAX_OBJECT_SIZE = 0.375  # of the image's side
# Below half of the smallest symmetry angle (star: 72 degrees), so that "up" is never ambiguous.
MAX_TILT_DEGREES = 30.0
MAX_HIDDEN = 0.3  # the largest fraction of an object that the objects drawn after it may cover
MIN_CONTRAST = 70.0  # Euclidean BGR distance of an object's colour from the mean colour beneath it
# Each class has its own range of hues, so that a small network learns the classes within minutes. Distractors may
# have any hue.
HUE_SPREAD_DEGREES = 12.0

_PLACEMENT_TRIES = 40
_SUPERSAMPLING = 4
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Shape:
    """One drawn object.

    `polygon` is the whole outline, ``(P, 2)`` xy, including covered parts (amodal). `keypoints` is
    ``(5, 3)``: x, y and visibility (2 visible, 1 covered by a later object). `hidden` is the covered fraction.
    """

    class_id: int
    polygon: np.ndarray
    keypoints: np.ndarray
    hidden: float

    def box_xyxy(self) -> np.ndarray:
        """The tight box ``(x0, y0, x1, y1)`` around the whole outline."""
        return np.concatenate([self.polygon.min(axis=0), self.polygon.max(axis=0)])


def draw_sample(
    rng: np.random.RandomState, size: int, objects: tuple[int, int] | None = None, distractors: int = 0
) -> tuple[np.ndarray, list[Shape]]:
    """Draw one image.

    Args:
        rng: the picture is a pure function of its state and of the other arguments.
        size: side of the image in pixels.
        objects: the smallest and the largest number of objects, each number between them equally likely. None: 1 to
            `MAX_OBJECTS`, and none in `EMPTY_FRACTION` of the images. Where no room is left, there are fewer.
        distractors: number of shapes of no class, in the colours of the classes; see `DISTRACTOR_NAMES`.

    Returns:
        The image, uint8 BGR ``(size, size, 3)``, and its shapes in drawing order. Distractors are not among them.
    """
    image = _background(rng, size)
    _draw_strokes(rng, image)
    placed = []
    names = [CLASS_NAMES] * _number_of_objects(rng, objects) + [DISTRACTOR_NAMES] * distractors
    for outlines in names:
        candidate = _place(rng, size, placed, outlines)
        if candidate is not None:
            _paint(rng, image, candidate["alpha"], candidate["hue_of"])
            placed.append(candidate)
    noise = rng.normal(0.0, rng.uniform(3.0, 9.0), image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image, [_finish(placed, k) for k in range(len(placed)) if placed[k]["class_id"] is not None]


def _number_of_objects(rng, objects):
    if objects is not None:
        return rng.randint(objects[0], objects[1] + 1)
    return 0 if rng.uniform() < EMPTY_FRACTION else rng.randint(1, MAX_OBJECTS + 1)


def polygon_coverage(polygon: np.ndarray, size: int) -> np.ndarray:
    """Fraction of each pixel that the polygon ``(P, 2)`` covers: float32 ``(size, size)`` in 0..1."""
    scale = _SUPERSAMPLING << _SUBPIXEL_BITS
    # OpenCV's integer coordinates are pixel centres, ours are pixel edges.
    points = np.rint(polygon * scale - (1 << _SUBPIXEL_BITS) / 2).astype(np.int32)
    fine = np.zeros((size * _SUPERSAMPLING, size * _SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [points], 255, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    blocks = fine.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
    return blocks.mean(axis=(1, 3), dtype=np.float32) / 255.0


def _outline(rng, name):
    """Outline ``(P, 2)`` around the origin, longest side 1, upright; the origin sees every point of it."""
    if name == "circle":
        angle = np.arange(48) * (2 * np.pi / 48)
        return 0.5 * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    if name == "rectangle":
        width, height = (1.0, rng.uniform(0.45, 1.0))[:: rng.choice([-1, 1])]
        return 0.5 * np.array([[-width, -height], [width, -height], [width, height], [-width, height]])
    if name == "triangle":
        width = rng.uniform(0.7, 1.0)
        return 0.5 * np.array([[0.0, -1.0], [width, 1.0], [-width, 1.0]])
    if name == "star":
        angle = np.arange(10) * (np.pi / 5)
        radius = np.where(np.arange(10) % 2 == 0, 0.5, 0.5 * rng.uniform(0.4, 0.5))
        return radius[:, None] * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    if name == "half disc":
        angle = np.linspace(-np.pi / 2, np.pi / 2, 25)
        return 0.5 * np.stack([np.sin(angle), 0.5 - np.cos(angle)], axis=1)
    if name == "chevron":
        depth = rng.uniform(0.45, 0.7)
        return 0.5 * np.array([[0.0, -depth], [1.0, depth], [0.0, 0.2 * depth], [-1.0, depth]])
    a, b = 0.5, 0.5 * rng.uniform(0.28, 0.4)
    return np.array([[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b],
                     [b, a], [-b, a], [-b, b], [-a, b], [-a, -b], [-b, -b]])  # fmt: skip


def _axis_points(outline):
    """Points ``(4, 2)`` where the rays up, right, down and left from the origin cross the outline."""
    start, edge = outline, np.roll(outline, -1, axis=0) - outline
    points = []
    for direction in np.array([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]):
        # Solve t * direction = start + u * edge for each edge with 0 <= u <= 1 and t > 0.
        denominator = direction[0] * edge[:, 1] - direction[1] * edge[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (start[:, 0] * edge[:, 1] - start[:, 1] * edge[:, 0]) / denominator
            u = (start[:, 0] * direction[1] - start[:, 1] * direction[0]) / denominator
        hit = np.isfinite(t) & (t > 0) & (u >= -1e-9) & (u <= 1 + 1e-9)
        points.append(direction * t[hit].max())
    return np.array(points)


def _candidate(rng, size, outlines):
    """A random shape at a random place inside the image, not yet checked against the other shapes.

    `outlines` is `CLASS_NAMES` or `DISTRACTOR_NAMES`; a distractor has the class id None.
    """
    hue_of = int(rng.choice(len(CLASS_NAMES), p=CLASS_FREQUENCIES))
    class_id = hue_of if outlines is CLASS_NAMES else None
    name = CLASS_NAMES[hue_of] if outlines is CLASS_NAMES else outlines[rng.randint(len(outlines))]
    outline = _outline(rng, name)
    keypoints = np.concatenate([np.zeros((1, 2)), _axis_points(outline)])
    # A turned circle looks the same as an upright one, so its keypoints can be predicted only without a tilt.
    tilt = 0.0 if name == "circle" else np.deg2rad(rng.uniform(-1, 1) * MAX_TILT_DEGREES)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    # Log-uniform: each octave of sizes is equally likely.
    side = np.exp(rng.uniform(np.log(MIN_OBJECT_SIZE), np.log(MAX_OBJECT_SIZE * size)))
    outline, keypoints = side * outline @ turn, side * keypoints @ turn
    low, high = 1.0 - outline.min(axis=0), size - 1.0 - outline.max(axis=0)
    center = low + rng.uniform(size=2) * (high - low)
    # Rounded here once, so that the file, the box and the pixels agree exactly.
    polygon = np.round(outline + center, 2)
    keypoints = np.round(keypoints + center, 2)
    return {"class_id": class_id, "hue_of": hue_of, "polygon": polygon, "keypoints": keypoints}


def _place(rng, size, placed, outlines):
    """A candidate that leaves each earlier object at most `MAX_HIDDEN` covered; None if no such candidate was found."""
    for _ in range(_PLACEMENT_TRIES):
        candidate = _candidate(rng, size, outlines)
        alpha = polygon_coverage(candidate["polygon"], size)
        mask = alpha > 0.5
        hidden = [other["hidden"] | (mask & other["mask"]) for other in placed]
        if all(h.sum() <= MAX_HIDDEN * other["mask"].sum() for h, other in zip(hidden, placed, strict=True)):
            for h, other in zip(hidden, placed, strict=True):
                other["hidden"] = h
            candidate.update(alpha=alpha, mask=mask, hidden=np.zeros_like(mask))
            return candidate
    return None


def _finish(placed, k):
    item = placed[k]
    rows, columns = np.floor(item["keypoints"][:, ::-1]).astype(int).T
    covered = np.zeros(len(KEYPOINT_NAMES), bool)
    for other in placed[k + 1 :]:
        covered |= other["mask"][rows, columns]
    keypoints = np.concatenate([item["keypoints"], np.where(covered, 1.0, 2.0)[:, None]], axis=1)
    hidden = float(item["hidden"].sum() / item["mask"].sum())
    return Shape(item["class_id"], item["polygon"], keypoints, hidden)


def _background(rng, size):
    """Cloudy texture in three octaves, brightness stronger than colour: uint8 BGR ``(size, size, 3)``."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = rng.uniform(60, 190) + rng.uniform(-30, 30, 3)
    for cells, amplitude in ((3, 26.0), (12, 16.0), (48, 11.0)):
        light = rng.normal(0.0, amplitude, (cells, cells, 1))
        tint = rng.normal(0.0, 0.4 * amplitude, (cells, cells, 3))
        coarse = (light + tint).astype(np.float32)
        image += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def _draw_strokes(rng, image):
    """Open curves, unfinished ellipses and specks, which belong to no class."""
    size = image.shape[0]
    scale = 1 << _SUBPIXEL_BITS
    for _ in range(rng.randint(6, 15)):
        a, b, c = rng.uniform(0, size, (3, 2))
        b, c = a + 0.6 * (b - a), a + 0.6 * (c - a)
        t = np.linspace(0, 1, 16)[:, None]
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        thickness = int(rng.randint(1, 2 + max(1, size // 85)))
        points = np.rint(curve * scale).astype(np.int32)
        cv2.polylines(image, [points], False, _color(rng), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    for _ in range(rng.randint(1, 4)):
        center, axes = rng.uniform(0, size, 2), rng.uniform(0.03, 0.15, 2) * size
        begin, sweep = rng.uniform(0, 360), rng.uniform(90, 230)
        cv2.ellipse(image, _fixed(center), _fixed(axes), rng.uniform(0, 180), begin, begin + sweep,
                    _color(rng), int(rng.randint(1, 4)), cv2.LINE_AA, _SUBPIXEL_BITS)  # fmt: skip
    for _ in range(rng.randint(10, 40)):
        cv2.circle(image, _fixed(rng.uniform(0, size, 2)), _fixed(rng.uniform(0.7, 2.2, 1))[0],
                   _color(rng), -1, cv2.LINE_AA, _SUBPIXEL_BITS)  # fmt: skip


def _fixed(values):
    """Pixels as OpenCV's fixed-point integers."""
    return tuple(int(v) for v in np.rint(np.asarray(values) * (1 << _SUBPIXEL_BITS)))


def _color(rng):
    return tuple(float(v) for v in rng.uniform(10, 245, 3))


def _class_color(rng, class_id):
    hue = (class_id * 360.0 / len(CLASS_NAMES) + rng.uniform(-HUE_SPREAD_DEGREES, HUE_SPREAD_DEGREES)) % 360.0
    hsv = np.array([[[hue, rng.uniform(0.55, 1.0), rng.uniform(0.45, 1.0)]]], np.float32)
    return 255.0 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float64)


def _paint(rng, image, alpha, class_id):
    """Blend a shaded, often outlined shape into `image` (in place), in a colour that differs from the background."""
    rows, columns = np.nonzero(alpha.any(axis=1))[0], np.nonzero(alpha.any(axis=0))[0]
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha, ground = alpha[window][..., None], image[window].astype(np.float32)
    mean = (alpha * ground).sum(axis=(0, 1)) / alpha.sum()
    color = _class_color(rng, class_id)
    while np.linalg.norm(color - mean) < MIN_CONTRAST:
        color = _class_color(rng, class_id)
    shade = np.linspace(-1, 1, alpha.shape[0])[:, None, None] * rng.uniform(-25, 25)
    paint = color + shade
    if rng.uniform() < 0.5:
        inner = cv2.erode(alpha[..., 0], np.ones((3, 3)), borderValue=0.0)[..., None]
        paint = paint * (0.55 + 0.45 * inner)
    image[window] = np.clip((1 - alpha) * ground + alpha * paint, 0, 255).astype(np.uint8)
