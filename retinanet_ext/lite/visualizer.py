"""Pictures of boxes with class names and scores.

Colours are RGB. Coordinates are continuous pixels of the given image; `scale` enlarges the picture, but does not apply
to coordinates.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .palette import generate_palette
from .structures import Boxes, BoxMode, Instances

# Fraction of the picture's mean side (the square root of its area), and the smallest readable size in pixels.
LINE_WIDTH, MIN_LINE_WIDTH = 1 / 250, 2
FONT_SIZE, MIN_FONT_SIZE = 1 / 40, 11
# Objects flatter than this many text lines get a smaller label, so that it does not hide them.
SMALL_OBJECT_LINES, SMALL_FONT, MIN_SMALL_FONT = 2.0, 0.8, 9
SHADOW = (0, 0, 0)
SHADOW_ALPHA = 90
TEXT_BACKGROUND_ALPHA = 200
# Part of a text's width that lies to the left of its position.
ALIGNMENTS = {"left": 0.0, "center": 0.5, "right": 1.0}
LABEL_ALPHA = 225
# A label avoids objects of up to this many times its own area; it cannot hide a larger object.
AVOIDED_OBJECT_AREA = 4
# Overlapping labels are both unreadable: this many times worse than a label hiding an object.
LABEL_OVERLAP_COST = 4


# Left, top, right, bottom; right and bottom are exclusive.
Rectangle = tuple[int, int, int, int]
# RGB in 0 to 255.
Color = tuple[int, int, int]


class ColorMode(Enum):
    """How the picture is coloured. Objects of one class have one colour in all modes."""

    IMAGE = 0
    """The image as it is."""
    SEGMENTATION = 1
    """The image as it is."""
    IMAGE_BW = 2
    """The image in grey outside of the boxes."""


class VisImage:
    """A finished picture."""

    def __init__(self, image: Image.Image):
        self._image = image

    def get_image(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return np.array(self._image)

    def save(self, filepath: str | os.PathLike) -> None:
        """Writes the picture; the format follows the extension.

        Raises:
            ValueError: unknown extension.
        """
        self._image.save(filepath)


class Visualizer:
    """Draws boxes onto a copy of one image. Repeated calls draw onto the same picture."""

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """
        Args:
            img_rgb: (H, W, 3), RGB, in 0 to 255.
            metadata: metadata of the dataset; `thing_classes` (names) and `thing_colors` (RGB in 0 to 255) are
                used if present.
            scale: size of the picture relative to the image.
            font_size_scale: size of labels relative to the usual size.

        Raises:
            ValueError: wrong shape, or a picture without pixels.
        """
        pixels = np.asarray(img_rgb)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise ValueError(f"img_rgb must have shape (height, width, 3), found {pixels.shape}")
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        self._image_size = image.size
        size = (int(image.width * scale), int(image.height * scale))
        if min(size) < 1:
            raise ValueError(f"scale {scale} leaves no pixel of an image of size {image.size}")
        self._canvas = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        self._mode = instance_mode
        self._names: Sequence[str] = _from_metadata(metadata, "thing_classes")
        self._colors: Sequence[Sequence[int]] = _from_metadata(metadata, "thing_colors")
        side = (size[0] * size[1]) ** 0.5
        self._line_width = max(round(side * LINE_WIDTH), MIN_LINE_WIDTH)
        self._font_size = max(round(max(side * FONT_SIZE, MIN_FONT_SIZE) * font_size_scale), 1)
        self._min_small_font = max(round(MIN_SMALL_FONT * font_size_scale), 1)

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draws detections, labelled with class and score.

        Args:
            predictions: with `pred_boxes`, and optionally `scores` and `pred_classes`; on any device.
        """
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        labels = [""] * len(predictions)
        colors = None
        if predictions.has("pred_classes"):
            classes = predictions.pred_classes.tolist()
            labels = [self._class_name(class_id) for class_id in classes]
            colors = self._class_colors(classes)
        if predictions.has("scores"):
            scores = predictions.scores.tolist()
            labels = [f"{label} {score:.0%}".strip() for label, score in zip(labels, scores, strict=True)]
        return self.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colors)

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draws the annotations of a dataset dict, labelled with their class."""
        annotations = dic.get("annotations", [])
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        labels = [self._class_name(a["category_id"]) + (" (crowd)" if a.get("iscrowd", 0) else "") for a in annotations]
        colors = self._class_colors([a["category_id"] for a in annotations])
        return self.overlay_instances(boxes=np.array(boxes), labels=labels, assigned_colors=colors)

    def overlay_instances(
        self,
        *,
        boxes: Boxes | torch.Tensor | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: None = None,
        keypoints: None = None,
        assigned_colors: Sequence | None = None,
    ) -> VisImage:
        """Draws boxes, large ones first, then the labels.

        Boxes wholly outside of the image, or with a NaN or infinite coordinate, are left out.

        Args:
            boxes: N boxes XYXY, shape (N, 4).
            labels: N texts; an empty one draws no label.
            masks, keypoints: only None; this engine draws boxes.
            assigned_colors: N colours: RGB with values in 0 to 1, or names of matplotlib. Default: the colours
                of the palette, in order.

        Raises:
            ValueError: the numbers of boxes, labels and colours differ, or a colour is illegal; masks or keypoints.
        """
        if masks is not None or keypoints is not None:
            raise ValueError("the lite engine draws boxes only; leave masks and keypoints out, or run on Detectron2")
        corners = _as_array(boxes)
        if assigned_colors is None:
            assigned_colors = _as_fractions(generate_palette(len(corners)))
        labels = [""] * len(corners) if labels is None else labels
        if not len(corners) == len(labels) == len(assigned_colors):
            raise ValueError(
                f"found {len(corners)} boxes, {len(labels)} labels and {len(assigned_colors)} colours: "
                "each box needs one of each"
            )
        colors = [_as_bytes(color) for color in assigned_colors]
        visible = self._visible(corners)
        self._draw(self._to_pixels(corners[visible]), [labels[i] for i in visible], [colors[i] for i in visible])
        return self.get_output()

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draws the outline of one box; nothing, if it is wholly outside of the image or not finite.

        Args:
            box_coord: x0, y0, x1, y1.
            alpha: 0 is transparent, 1 hides what lies below.
            edge_color: RGB with values in 0 to 1, or a name of matplotlib.
            line_style: only "-", a solid line.

        Raises:
            ValueError: another line style, or an illegal colour.
        """
        if line_style != "-":
            raise ValueError(f"line_style is {line_style!r}; the lite engine draws solid lines only: '-'")
        corners = _as_array(box_coord)
        draw = ImageDraw.Draw(self._canvas, "RGBA")
        for rectangle in self._to_pixels(corners[self._visible(corners)]):
            self._draw_box(draw, rectangle, _as_bytes(edge_color), alpha)
        return self.get_output()

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Draws a text on a dark, or for a dark text light, background.

        Args:
            position: x, y of the upper edge of the background.
            font_size: in pixels of the picture; default: that of labels.
            color: RGB with values in 0 to 1, or a name of matplotlib.
            horizontal_alignment: the part of the background's upper edge that lies at x: left, center or right.
            rotation: degrees, counter-clockwise.

        Raises:
            ValueError: unknown alignment, or an illegal colour.
        """
        if horizontal_alignment not in ALIGNMENTS:
            raise ValueError(f"horizontal_alignment is {horizontal_alignment!r}; legal values: {', '.join(ALIGNMENTS)}")
        font = _font(self._font_size if font_size is None else max(round(font_size), 1))
        pad = max(font.size // 5, 2)
        color = _as_bytes(color)
        _, _, width, height = ImageDraw.Draw(self._canvas).textbbox((0, 0), text, font=font)
        background = (0, 0, 0) if _luminance(color) > 0.18 else (255, 255, 255)
        label = Image.new(
            "RGBA", (round(width) + 2 * pad, round(height) + 2 * pad), (*background, TEXT_BACKGROUND_ALPHA)
        )
        ImageDraw.Draw(label).text((pad, pad), text, fill=color, font=font)
        label = label.rotate(rotation, Image.Resampling.BICUBIC, expand=True)
        x, y = np.array(position) * self._canvas.size / self._image_size
        self._canvas.paste(label, (round(x - ALIGNMENTS[horizontal_alignment] * label.width), round(y)), label)
        return self.get_output()

    @property
    def output(self) -> VisImage:
        """The picture as it is now, as :meth:`get_output`."""
        return self.get_output()

    def _visible(self, corners: np.ndarray) -> np.ndarray:
        """Rows of boxes (N, 4) that are finite and not wholly outside of the image."""
        inside = (corners[:, 2:] >= 0).all(axis=1) & (corners[:, :2] <= self._image_size).all(axis=1)
        return np.flatnonzero(inside & np.isfinite(corners).all(axis=1))

    def _draw(self, rectangles: list[Rectangle], labels: list[str], colors: list[Color]) -> None:
        if self._mode is ColorMode.IMAGE_BW:
            self._grey_outside(rectangles)
        draw = ImageDraw.Draw(self._canvas, "RGBA")
        for index in sorted(range(len(rectangles)), key=lambda i: -_area(rectangles[i])):
            self._draw_box(draw, rectangles[index], colors[index])
        placed: list[Rectangle] = []
        for rectangle, label, color in zip(rectangles, labels, colors, strict=True):
            if label:
                placed.append(self._draw_label(draw, rectangle, label, color, rectangles, placed))

    def get_output(self) -> VisImage:
        """The picture as it is now."""
        return VisImage(self._canvas.copy())

    def _class_name(self, class_id: int) -> str:
        return self._names[class_id] if 0 <= class_id < len(self._names) else str(class_id)

    def _class_colors(self, classes: Sequence[int]) -> list[tuple[float, ...]]:
        palette = generate_palette(max([0, *classes]) + 1)
        colors = [self._colors[c] if 0 <= c < len(self._colors) else palette[c] for c in classes]
        return _as_fractions(colors)

    def _to_pixels(self, corners: np.ndarray) -> list[Rectangle]:
        """Boxes (N, 4) of the image in whole pixels of the picture, clipped to it, each at least one pixel."""
        size = np.array(self._canvas.size)
        scaled = np.round(corners.reshape(-1, 2, 2) * size / self._image_size)
        first = np.clip(scaled[:, 0], 0, size - 1)
        end = np.clip(scaled[:, 1], first + 1, size)
        return [tuple(row) for row in np.concatenate([first, end], axis=1).astype(int).tolist()]

    def _grey_outside(self, rectangles: list[Rectangle]) -> None:
        grey = self._canvas.convert("L").convert("RGB")
        for rectangle in rectangles:
            grey.paste(self._canvas.crop(rectangle), rectangle)
        self._canvas = grey

    def _draw_box(self, draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: Color, alpha: float = 1.0) -> None:
        left, top, right, bottom = rectangle
        # The thin shadow outside keeps the line visible on a background of the same colour.
        draw.rectangle((left - 1, top - 1, right, bottom), outline=(*SHADOW, round(alpha * SHADOW_ALPHA)))
        width = min(self._line_width, (min(right - left, bottom - top) + 1) // 2)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(*color, round(alpha * 255)), width=width)

    def _draw_label(
        self,
        draw: ImageDraw.ImageDraw,
        rectangle: Rectangle,
        label: str,
        color: Color,
        objects: list[Rectangle],
        placed: list[Rectangle],
    ) -> Rectangle:
        """Draws a label where it hides least of the objects and of the labels in `placed`; returns its rectangle."""
        height = rectangle[3] - rectangle[1]
        is_small = height < SMALL_OBJECT_LINES * self._font_size
        font = _font(max(round(self._font_size * SMALL_FONT), self._min_small_font) if is_small else self._font_size)
        pad = max(font.size // 5, 2)
        label = _shorten(label, font, self._canvas.width - 2 * pad)
        ascent, descent = font.getmetrics()
        box_size = (min(round(font.getlength(label)) + 2 * pad, self._canvas.width), ascent + descent + pad)
        spot = _best_spot(rectangle, box_size, self._canvas.size, objects, placed)
        draw.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=(*color, LABEL_ALPHA))
        text_color = (0, 0, 0) if _luminance(color) > 0.36 else (255, 255, 255)
        draw.text((spot[0] + pad, spot[1] + pad // 2), label, fill=text_color, font=font)
        return spot


def _best_spot(
    rectangle: Rectangle,
    size: tuple[int, int],
    canvas: tuple[int, int],
    objects: list[Rectangle],
    placed: list[Rectangle],
) -> Rectangle:
    """The place that hides least: above the object, inside at the top, below, inside at the bottom; left or right."""
    (x0, y0, x1, y1), (width, height) = rectangle, size
    largest = AVOIDED_OBJECT_AREA * width * height
    small = [other for other in objects if _area(other) <= largest]
    best, least_hidden = None, None
    for y in (y0 - height, y0, y1, y1 - height):
        for x in (x0, x1 - width):
            left = max(min(x, canvas[0] - width), 0)
            top = max(min(y, canvas[1] - height), 0)
            spot = (left, top, left + width, top + height)
            hidden = sum(_overlap(spot, other) for other in small)
            hidden += LABEL_OVERLAP_COST * sum(_overlap(spot, other) for other in placed)
            if least_hidden is None or hidden < least_hidden:
                best, least_hidden = spot, hidden
    return best


def _area(rectangle: Rectangle) -> int:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _overlap(a: Rectangle, b: Rectangle) -> int:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _shorten(label: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…" if label else ""


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib ships this font, so labels look the same on every machine.
    import matplotlib  # here, because its import delays the start of every run

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)


def _luminance(color: Color) -> float:
    """Relative luminance in 0 to 1 (ITU-R BT.709 weights, gamma 2.2)."""
    red, green, blue = ((value / 255) ** 2.2 for value in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _from_metadata(metadata: Any, name: str) -> Sequence:
    return (metadata.get(name, None) if metadata is not None else None) or []


def _as_array(boxes: Boxes | torch.Tensor | np.ndarray | None) -> np.ndarray:
    if boxes is None:
        return np.zeros((0, 4))
    if isinstance(boxes, Boxes):
        boxes = boxes.tensor
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _as_fractions(colors: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    return [tuple(value / 255 for value in color) for color in colors]


def _as_bytes(color: Any) -> Color:
    from matplotlib.colors import to_rgb  # here, because its import delays the start of every run

    return tuple(round(255 * value) for value in to_rgb(color))
