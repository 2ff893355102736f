"""Labels, each where it hides least."""

from __future__ import annotations

import functools
import os

from PIL import Image, ImageDraw, ImageFont

from .drawing_colors import Color, luminance

LABEL_ALPHA = 225
# A label avoids objects of up to this many times its own area; it cannot hide a larger object.
AVOIDED_OBJECT_AREA = 4
# Overlapping labels are both unreadable: this many times worse than a label hiding an object.
LABEL_OVERLAP_COST = 4

# Left, top, right, bottom; right and bottom are exclusive.
Rectangle = tuple[int, int, int, int]


def draw_label(
    canvas: Image.Image,
    rectangle: Rectangle,
    label: str,
    color: Color,
    font: ImageFont.FreeTypeFont,
    objects: list[Rectangle],
    placed: list[Rectangle],
) -> Rectangle:
    """Labels the object in `rectangle` where the label hides least of `objects` and of the labels in `placed`.

    Returns:
        The rectangle of the label.
    """
    draw = ImageDraw.Draw(canvas, "RGBA")
    pad = max(font.size // 5, 2)
    label = _shorten(label, font, canvas.width - 2 * pad)
    ascent, descent = font.getmetrics()
    box_size = (min(round(font.getlength(label)) + 2 * pad, canvas.width), ascent + descent + pad)
    spot = _best_spot(rectangle, box_size, canvas.size, objects, placed)
    draw.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=(*color, LABEL_ALPHA))
    text_color = (0, 0, 0) if luminance(color) > 0.36 else (255, 255, 255)
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
    small = [other for other in objects if area(other) <= largest]
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


def area(rectangle: Rectangle) -> int:
    """Number of pixels."""
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
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all labels, `size` pixels high."""
    # Matplotlib ships this font, so labels look the same on every machine.
    import matplotlib  # here, because its import delays the start of every run

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)
