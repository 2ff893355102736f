"""Pictures of boxes, masks and keypoints with class names and scores.

Colours are RGB. Coordinates are continuous pixels of the given image; `scale` enlarges the picture, but does not apply
to coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from .drawing.drawing_colors import Color, as_bytes, as_fractions, luminance
from .drawing.label_placing import Rectangle, draw_label, load_font
from .drawing.mask_shapes import as_mask_list, mask_shape, without_small_parts
from .drawing.object_extents import as_box_array, common_count, object_extents
from .drawing.painting import grey_outside, paint_mask, paint_outlines, paint_points_and_lines
from .drawing.picture import ColorMode, VisImage
from .drawing.skeletons import (
    KEYPOINT_THRESHOLD,
    POINT_COLOR,
    as_keypoint_array,
    is_drawn,
    keypoints_of_annotations,
    skeleton_lines,
)
from .palette import generate_palette
from .structures import Boxes, BoxMode, Instances

# Fraction of the picture's mean side (the square root of its area), and the smallest readable size in pixels.
LINE_WIDTH, MIN_LINE_WIDTH = 1 / 250, 2
FONT_SIZE, MIN_FONT_SIZE = 1 / 40, 11
# Objects flatter than this many text lines get a smaller label, so that it does not hide them.
SMALL_OBJECT_LINES, SMALL_FONT, MIN_SMALL_FONT = 2.0, 0.8, 9
# Fraction of a skeleton's longer side that its lines are wide at most.
SKELETON_LINE_WIDTH = 1 / 40
SHADOW = (0, 0, 0)
SHADOW_ALPHA = 90
TEXT_BACKGROUND_ALPHA = 200
# Part of a text's width that lies to the left of its position.
ALIGNMENTS = {"left": 0.0, "center": 0.5, "right": 1.0}
MASK_ALPHA = 0.5
# Where the background is grey, or colours say the class, the masks need less or more colour.
MASK_ALPHAS = {ColorMode.IMAGE: MASK_ALPHA, ColorMode.SEGMENTATION: 0.8, ColorMode.IMAGE_BW: 0.3}


class Visualizer:
    """Draws objects onto a copy of one image. Repeated calls draw onto the same picture.

    Attributes:
        keypoint_threshold: keypoints with a score or visibility up to this are not drawn.
    """

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
            metadata: metadata of the dataset. Used if present: `thing_classes` (names), `thing_colors` (RGB in 0 to
                255), `keypoint_names`, and `keypoint_connection_rules` (name, name, RGB in 0 to 255 of each line).
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
        self._keypoint_names: Sequence[str] = _from_metadata(metadata, "keypoint_names")
        self._keypoint_rules: Sequence[Sequence] = _from_metadata(metadata, "keypoint_connection_rules")
        self.keypoint_threshold = KEYPOINT_THRESHOLD
        side = (size[0] * size[1]) ** 0.5
        self._line_width = max(round(side * LINE_WIDTH), MIN_LINE_WIDTH)
        self._font_size = max(round(max(side * FONT_SIZE, MIN_FONT_SIZE) * font_size_scale), 1)
        self._min_small_font = max(round(MIN_SMALL_FONT * font_size_scale), 1)

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draws detections, labelled with class and score.

        Args:
            predictions: N detections on any device. Each of these fields may be missing: `pred_boxes`, `scores`,
                `pred_classes`, `pred_masks` (bool (N, H, W), or EncodedMasks) and `pred_keypoints` (N, J, 3).
        """
        boxes, masks, keypoints = (
            predictions.get(name) if predictions.has(name) else None
            for name in ("pred_boxes", "pred_masks", "pred_keypoints")
        )
        labels = [""] * len(predictions)
        colors = None
        if predictions.has("pred_classes"):
            classes = predictions.pred_classes.tolist()
            labels = [self._class_name(class_id) for class_id in classes]
            colors = self._object_colors(classes, masks is not None)
        if predictions.has("scores"):
            scores = predictions.scores.tolist()
            labels = [f"{label} {score:.0%}".strip() for label, score in zip(labels, scores, strict=True)]
        return self.overlay_instances(
            boxes=boxes, labels=labels, masks=masks, keypoints=keypoints, assigned_colors=colors,
            alpha=self._mask_alpha(),
        )  # fmt: skip

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draws the annotations of a dataset dict, labelled with their class.

        Each annotation may have a `bbox`, a `segmentation` (polygons or RLE) and `keypoints` (3 J numbers).
        """
        annotations = dic.get("annotations", [])
        masks = [a.get("segmentation") or None for a in annotations]
        has_masks = any(mask is not None for mask in masks)
        classes = [a["category_id"] for a in annotations]
        labels = [self._class_name(a["category_id"]) + (" (crowd)" if a.get("iscrowd", 0) else "") for a in annotations]
        boxes = [
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) if "bbox" in a else [np.nan] * 4
            for a in annotations
        ]
        return self.overlay_instances(
            boxes=np.array(boxes), labels=labels, masks=masks if has_masks else None,
            keypoints=keypoints_of_annotations(annotations), assigned_colors=self._object_colors(classes, has_masks),
            alpha=self._mask_alpha(),
        )  # fmt: skip

    def overlay_instances(
        self,
        *,
        boxes: Boxes | torch.Tensor | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence | None = None,
        alpha: float = MASK_ALPHA,
    ) -> VisImage:
        """Draws N objects: masks, boxes, keypoints, then labels; masks and boxes from the largest to the smallest.

        Boxes wholly outside of the image, or with a NaN or infinite coordinate, are left out, as are empty masks.

        Args:
            boxes: N boxes XYXY, shape (N, 4).
            labels: N texts; an empty one draws no label.
            masks: PolygonMasks, BitMasks or EncodedMasks; a bool array or tensor (N, H, W); or a list of N masks, each
                an array (H, W), a COCO RLE dict, a list of polygons, or None. All in pixels of the image.
            keypoints: Keypoints, a tensor or an array (N, J, 3): x, y, and score or visibility.
            assigned_colors: N colours: RGB with values in 0 to 1, or names of matplotlib. Default: the colours
                of the palette, in order.
            alpha: of the masks; 0 is transparent, 1 hides what lies below.

        Raises:
            ValueError: numbers of objects that differ, an illegal colour, or a mask of another size than the image.
        """
        masks = None if masks is None else as_mask_list(masks)
        points = None if keypoints is None else as_keypoint_array(keypoints)
        corners = None if boxes is None else as_box_array(boxes)
        given = {"boxes": corners, "masks": masks, "keypoints": points, "labels": labels, "colours": assigned_colors}
        count = common_count({name: len(values) for name, values in given.items() if values is not None})
        colors = as_fractions(generate_palette(count)) if assigned_colors is None else assigned_colors
        colors = [as_bytes(color) for color in colors]
        extents = object_extents(count, corners, masks, points, self._image_size, self.keypoint_threshold)
        visible = self._visible(extents)
        order = sorted(visible.tolist(), key=lambda i: -np.prod(extents[i, 2:] - extents[i, :2]))
        shown = self._to_pixels(extents[visible])
        rectangles = dict(zip(visible.tolist(), shown, strict=True))
        if self._mode is ColorMode.IMAGE_BW:
            shapes = (mask_shape(mask, self._image_size, self._canvas.size) for mask in masks or ())
            self._canvas = grey_outside(self._canvas, shown if masks is None else [], shapes)
        for index in order if masks is not None else ():
            self._draw_mask(masks[index], colors[index], colors[index], alpha)
        draw = ImageDraw.Draw(self._canvas, "RGBA")
        for index in order if corners is not None else ():
            if np.isfinite(corners[index]).all():
                self._draw_box(draw, rectangles[index], colors[index])
        for row in points if points is not None else ():
            self._draw_keypoints(row)
        self._draw_labels(rectangles, [""] * count if labels is None else labels, colors)
        return self.get_output()

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray | torch.Tensor,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = MASK_ALPHA,
        area_threshold: float = 10,
    ) -> VisImage:
        """Draws one mask with its outline.

        Args:
            binary_mask: (H, W), bool or numbers, of which those other than 0 are the object.
            color: RGB with values in 0 to 1, or a name of matplotlib; default: the first of the palette.
            edge_color: of the outline; default: that of the mask.
            text: written in the middle of the mask.
            alpha: 0 is transparent, 1 hides what lies below.
            area_threshold: connected parts of fewer pixels are not drawn.

        Raises:
            ValueError: a mask of another size than the image, or an illegal colour.
        """
        color = as_bytes(as_fractions(generate_palette(1))[0] if color is None else color)
        mask = without_small_parts(binary_mask, self._image_size, area_threshold)
        self._draw_mask(mask, color, color if edge_color is None else as_bytes(edge_color), alpha)
        if text and mask.any():
            middle = np.median(np.argwhere(mask), axis=0)[::-1]
            self.draw_text(text, middle, color=as_fractions([color])[0])
        return self.get_output()

    def draw_polygon(
        self, segment: np.ndarray | Sequence, color: Any, edge_color: Any = None, alpha: float = MASK_ALPHA
    ) -> VisImage:
        """Draws one filled polygon with its outline.

        Args:
            segment: (P, 2), x and y of at least three points.
            color: RGB with values in 0 to 1, or a name of matplotlib.
            edge_color: of the outline; default: that of the polygon.
            alpha: 0 is transparent, 1 hides what lies below.

        Raises:
            ValueError: fewer than three points, or an illegal colour.
        """
        color = as_bytes(color)
        self._draw_mask([segment], color, color if edge_color is None else as_bytes(edge_color), alpha)
        return self.get_output()

    def draw_and_connect_keypoints(self, keypoints: np.ndarray | torch.Tensor) -> VisImage:
        """Draws the keypoints of one object whose score or visibility is above `keypoint_threshold`.

        The metadata's `keypoint_names` and `keypoint_connection_rules` say which are joined. If they contain the nose,
        shoulders and hips of a person, the middle of the shoulders is joined to the nose and the middle of the hips.

        Args:
            keypoints: (J, 3), x, y, and score or visibility.

        Raises:
            ValueError: another number of keypoints than of names.
        """
        self._draw_keypoints(as_keypoint_array(keypoints[None])[0])
        return self.get_output()

    def _draw_keypoints(self, keypoints: np.ndarray) -> None:
        drawn = is_drawn(keypoints, self.keypoint_threshold)
        lines = skeleton_lines(keypoints, drawn, self._keypoint_names, self._keypoint_rules)
        if drawn.any():
            scale = np.array(self._canvas.size) / self._image_size
            lines = [(start * scale, end * scale, color) for start, end, color in lines]
            points = keypoints[drawn, :2] * scale
            # Thinner on small objects, whose points would hide each other.
            width = min(self._line_width, max(round(np.ptp(points, axis=0).max() * SKELETON_LINE_WIDTH), 1))
            paint_points_and_lines(self._canvas, points, POINT_COLOR, lines, width)

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
        corners = as_box_array(box_coord)
        draw = ImageDraw.Draw(self._canvas, "RGBA")
        for rectangle in self._to_pixels(corners[self._visible(corners)]):
            self._draw_box(draw, rectangle, as_bytes(edge_color), alpha)
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
        font = load_font(self._font_size if font_size is None else max(round(font_size), 1))
        pad = max(font.size // 5, 2)
        color = as_bytes(color)
        _, _, width, height = ImageDraw.Draw(self._canvas).textbbox((0, 0), text, font=font)
        background = (0, 0, 0) if luminance(color) > 0.18 else (255, 255, 255)
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

    def _draw_mask(self, mask: Any, color: Color, edge_color: Color, alpha: float) -> None:
        shape = mask_shape(mask, self._image_size, self._canvas.size)
        if shape is not None:
            paint_mask(self._canvas, shape, color, alpha)
            paint_outlines(self._canvas, shape, edge_color, max(self._line_width // 2, 1))

    def _draw_labels(self, rectangles: dict[int, Rectangle], labels: Sequence[str], colors: list[Color]) -> None:
        sizes = (self._font_size, max(round(self._font_size * SMALL_FONT), self._min_small_font))
        placed: list[Rectangle] = []
        for index, rectangle in rectangles.items():
            if labels[index]:
                is_small = rectangle[3] - rectangle[1] < SMALL_OBJECT_LINES * self._font_size
                font = load_font(sizes[is_small])
                others = list(rectangles.values())
                placed.append(draw_label(self._canvas, rectangle, labels[index], colors[index], font, others, placed))

    def get_output(self) -> VisImage:
        """The picture as it is now."""
        return VisImage(self._canvas.copy())

    def _class_name(self, class_id: int) -> str:
        return self._names[class_id] if 0 <= class_id < len(self._names) else str(class_id)

    def _mask_alpha(self) -> float:
        # Palette colours need no strength to be recognised, since they say the class only within one picture.
        by_palette = self._mode is ColorMode.SEGMENTATION and not self._colors
        return MASK_ALPHA if by_palette else MASK_ALPHAS[self._mode]

    def _object_colors(self, classes: Sequence[int], has_masks: bool) -> list[tuple[float, ...]] | None:
        is_by_object = has_masks and self._mode is not ColorMode.SEGMENTATION
        return None if is_by_object else self._class_colors(classes)

    def _class_colors(self, classes: Sequence[int]) -> list[tuple[float, ...]]:
        palette = generate_palette(max([0, *classes]) + 1)
        colors = [self._colors[c] if 0 <= c < len(self._colors) else palette[c] for c in classes]
        return as_fractions(colors)

    def _to_pixels(self, corners: np.ndarray) -> list[Rectangle]:
        """Boxes (N, 4) of the image in whole pixels of the picture, clipped to it, each at least one pixel."""
        size = np.array(self._canvas.size)
        scaled = np.round(corners.reshape(-1, 2, 2) * size / self._image_size)
        first = np.clip(scaled[:, 0], 0, size - 1)
        end = np.clip(scaled[:, 1], first + 1, size)
        return [tuple(row) for row in np.concatenate([first, end], axis=1).astype(int).tolist()]

    def _draw_box(self, draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: Color, alpha: float = 1.0) -> None:
        left, top, right, bottom = rectangle
        # The thin shadow outside keeps the line visible on a background of the same colour.
        draw.rectangle((left - 1, top - 1, right, bottom), outline=(*SHADOW, round(alpha * SHADOW_ALPHA)))
        width = min(self._line_width, (min(right - left, bottom - top) + 1) // 2)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(*color, round(alpha * 255)), width=width)


def _from_metadata(metadata: Any, name: str) -> Sequence:
    return (metadata.get(name, None) if metadata is not None else None) or []
