"""A contact sheet: a row of thumbnails for each group of images, to look at a clustering."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

_SIDE, _GAP, _TITLE_WIDTH, _FONT_SIZE = 96, 6, 170, 15
_INK, _SOFT, _GROUND, _LINE = "#1f2328", "#59636e", "#ffffff", "#d5dae0"


class SheetRow(NamedTuple):
    """One group: what stands at its left, in one line or two, and its images."""

    title: str
    images: Sequence[Path]
    note: str = ""


def contact_sheets(rows: Sequence[SheetRow], columns: int = 12, rows_per_page: int = 30) -> Iterator[Image.Image]:
    """Yield pages of at most ``rows_per_page`` rows. A row with more images than ``columns`` says how many it leaves
    out."""
    for start in range(0, len(rows), rows_per_page):
        yield _page(rows[start : start + rows_per_page], columns)


def _page(rows: Sequence[SheetRow], columns: int) -> Image.Image:
    used = min(max(len(row.images) for row in rows), columns)
    step = _SIDE + _GAP
    page = Image.new("RGB", (_TITLE_WIDTH + used * step + _GAP, len(rows) * step + _GAP), _GROUND)
    draw, font = ImageDraw.Draw(page), _font()
    for number, row in enumerate(rows):
        top = _GAP + number * step
        draw.line([(0, top - _GAP // 2), (page.width, top - _GAP // 2)], _LINE)
        _write_titles(draw, font, row, top)
        left_out = max(0, len(row.images) - columns)
        shown = row.images if not left_out else row.images[: columns - 1]
        for column, path in enumerate(shown):
            page.paste(_thumbnail(path), (_TITLE_WIDTH + column * step, top))
        if left_out:
            middle = (_TITLE_WIDTH + (columns - 1) * step + _SIDE // 2, top + _SIDE // 2)
            draw.text(middle, f"+{len(row.images) - len(shown)}", _SOFT, font, anchor="mm")
    return page


def _write_titles(draw: ImageDraw.ImageDraw, font, row: SheetRow, top: int) -> None:
    room = _TITLE_WIDTH - 2 * _GAP
    middle = top + _SIDE // 2
    draw.text((_GAP, middle - _FONT_SIZE), _shortened(row.title, font, room), _INK, font, anchor="lm")
    draw.text((_GAP, middle + _FONT_SIZE // 2), _shortened(row.note, font, room), _SOFT, font, anchor="lm")


def _shortened(text: str, font, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"


def _thumbnail(path: Path) -> Image.Image:
    """The whole image in a square, the rest filled."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # lets a JPEG be decoded at a lower resolution
        image = ImageOps.exif_transpose(image).convert("RGB")
        return ImageOps.pad(image, (_SIDE, _SIDE), color=_LINE)


def _font() -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import findfont

    # Part of matplotlib; it has Greek and Cyrillic letters too.
    return ImageFont.truetype(findfont("DejaVu Sans"), _FONT_SIZE)
