"""Masks, outlines and lines, blended into a part of a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image

from .drawing_colors import Color
from .label_placing import Rectangle
from .mask_shapes import SHIFT, MaskShape, to_fixed_point


@contextmanager
def pixels_of(canvas: Image.Image, rectangle: Rectangle) -> Iterator[np.ndarray]:
    """The pixels of a part of the picture, uint8 (h, w, 3); written back at the end."""
    pixels = np.array(canvas.crop(rectangle))
    yield pixels
    canvas.paste(Image.fromarray(pixels), rectangle[:2])


def grown(rectangle: Rectangle, margin: int, canvas_size: tuple[int, int]) -> Rectangle:
    """The rectangle with a margin on each side, clipped to the picture."""
    left, top, right, bottom = rectangle
    return (
        max(left - margin, 0),
        max(top - margin, 0),
        min(right + margin, canvas_size[0]),
        min(bottom + margin, canvas_size[1]),
    )


def grey_outside(
    canvas: Image.Image, rectangles: Iterable[Rectangle], shapes: Iterable[MaskShape | None]
) -> Image.Image:
    """The picture in grey, but for rectangles and masks."""
    grey = canvas.convert("L").convert("RGB")
    for rectangle in rectangles:
        grey.paste(canvas.crop(rectangle), rectangle)
    for shape in shapes:
        if shape is not None:
            grey.paste(canvas.crop(shape.rectangle), shape.rectangle[:2], Image.fromarray(shape.coverage))
    return grey


def paint_mask(canvas: Image.Image, shape: MaskShape, color: Color, alpha: float) -> None:
    """Blend a colour into the covered pixels: ``(1 - alpha) * pixel + alpha * color``."""
    with pixels_of(canvas, shape.rectangle) as pixels:
        blend(pixels, shape.coverage, color, alpha)


def blend(pixels: np.ndarray, coverage: np.ndarray, color: Color, alpha: float) -> None:
    """Blend a colour into uint8 pixels (h, w, 3), in place, as far as `coverage`, uint8 (h, w), covers them."""
    # A table of the 256 results for each channel needs no copy in floats.
    values = np.arange(256)[:, None] * (1 - alpha) + np.array(color) * alpha
    blended = cv2.LUT(pixels, np.round(values).astype(np.uint8)[None])
    whole = coverage == 255
    cv2.copyTo(blended, whole.view(np.uint8), pixels)
    rows, columns = np.nonzero((coverage > 0) & ~whole)
    before = pixels[rows, columns].astype(np.float32)
    share = coverage[rows, columns, None] / 255
    pixels[rows, columns] = np.round(before + share * (blended[rows, columns] - before)).astype(np.uint8)


def paint_outlines(canvas: Image.Image, shape: MaskShape, color: Color, width: int) -> None:
    """Draw the outlines of a mask, `width` pixels wide, on its border."""
    rectangle = grown(shape.rectangle, width + 1, canvas.size)
    with pixels_of(canvas, rectangle) as pixels:
        lines = [to_fixed_point(line, rectangle) for line in shape.outlines]
        cv2.polylines(pixels, lines, True, color, width, cv2.LINE_AA, SHIFT)


def paint_points_and_lines(
    canvas: Image.Image,
    points: np.ndarray,
    point_color: Color,
    lines: Sequence[tuple[np.ndarray, np.ndarray, Color]],
    width: int,
) -> None:
    """Draw lines, and discs with a dark rim above them.

    Args:
        points: (P, 2), x, y in continuous pixels of the picture.
        lines: both ends, (2,) each, and the colour.
        width: of the lines, in pixels; a disc is as wide as two lines.
    """
    ends = np.concatenate([points, *(np.stack(line[:2]) for line in lines)])
    limits = np.clip(np.concatenate([np.floor(ends.min(axis=0)), np.ceil(ends.max(axis=0))]), 0, [*canvas.size] * 2)
    rectangle = grown(tuple(limits.astype(int).tolist()), 2 * width + 2, canvas.size)
    if rectangle[0] >= rectangle[2] or rectangle[1] >= rectangle[3]:
        return
    with pixels_of(canvas, rectangle) as pixels:
        for first, second, color in lines:
            start, end = to_fixed_point(np.stack([first, second]), rectangle).tolist()
            cv2.line(pixels, start, end, color, width, cv2.LINE_AA, SHIFT)
        for center in to_fixed_point(points, rectangle).tolist():
            cv2.circle(pixels, center, (width + 1) << SHIFT, (0, 0, 0), -1, cv2.LINE_AA, SHIFT)
            cv2.circle(pixels, center, width << SHIFT, point_color, -1, cv2.LINE_AA, SHIFT)
