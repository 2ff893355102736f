"""The page of `doctor data`: counts, findings with pictures of the first ones, statistics. Self-contained."""

import io
import os
from collections.abc import Sequence
from itertools import compress, groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from retinanet_ext.data.doctor.record_checks import OUTSIDE_FOLDER
from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.report.document import Block, Facts, Heading, Paragraph, Pictures, Table
from retinanet_ext.report.formats import readable_path
from retinanet_ext.report.html_page import to_html

from .data_doctor import Examination
from .findings import ERROR, Finding, counts_by_kind
from .statistics_section import statistics_blocks

_PICTURES, _ROWS = 6, 20  # of each kind
_PICTURE_SIDE = 320  # pixels
_SMALL_SHARE = 0.15  # a box with a side below this part of the image is shown enlarged, too
_AROUND = 3  # side of the part around a box, in sides of the box
_MIN_DRAWN = 14.0  # pixels of a picture
_COLOURS = {"error": "#e5484d", "warning": "#f5a300", "note": "#0b65c2"}


def write_page(examination: Examination, config_file: str, path: Path) -> None:
    """Write the page.

    Args:
        examination: what was found.
        config_file: for the first lines.
        path: of the HTML file.
    """
    write_atomically(path, to_html("Data of a config, examined", page_blocks(examination, config_file)))


def page_blocks(examination: Examination, config_file: str) -> list[Block]:
    """The page as a list of blocks."""
    blocks: list[Block] = [Facts(_facts(examination, config_file))]
    kinds = counts_by_kind(examination.findings)
    if kinds:
        names = list(dict.fromkeys(finding.dataset for finding in examination.findings))
        blocks += [Heading("Findings"), _overview(examination.findings, kinds, names)]
    else:
        blocks.append(Paragraph("Nothing was found."))
    for (severity, kind), found in groupby(examination.findings, lambda f: (f.severity, f.kind)):
        blocks += _kind_blocks(severity, kind, list(found), examination)
    blocks += examination.blocks
    return blocks + statistics_blocks(examination)


def picture_of(finding: Finding, partner: str | None = None) -> list[bytes]:
    """JPEG files: the image with the box, and the part around a small box; none if the file cannot be read.

    Args:
        finding: about an image.
        partner: file of another image to show beside it.
    """
    image, other = _opened(finding.file_name), partner and _opened(partner)
    if image is None:
        return []
    pictures = [_drawn(image, finding.box, finding.severity)]
    if other:
        pictures.append(_drawn(other, None, finding.severity))
    if finding.box is not None and _is_small(finding.box, image.size):
        pictures.append(_part_around(image, finding.box, finding.severity))
    return [_as_jpeg(picture) for picture in pictures]


def _opened(path):
    if not os.path.isfile(path):  # also a pipe, which nobody may write to
        return None
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except Exception:  # damaged files are among the findings
        return None


def _facts(examination, config_file):
    errors = sum(finding.severity == ERROR for finding in examination.findings)
    verdict = f"{errors:,} error{'s' * (errors != 1)}: training refuses these data, or fails" if errors else "no errors"
    facts = [("Config", readable_path(Path(config_file))), ("Result", verdict)]
    for name, about in examination.datasets.items():
        text = f"{about['split']}, {about['images']:,} images, {about['format'] or 'registered in code'}"
        text += f", {about['annotation file']}" if about["annotation file"] else ""
        text += f", images in {about['folder']}" if about["folder"] else ""
        facts.append((name, text))
    return facts


def _overview(findings: Sequence[Finding], kinds, names) -> Table:
    rows = []
    for severity, kind, count in kinds:
        found = [finding.dataset for finding in findings if finding.kind == kind and finding.severity == severity]
        rows.append([kind, severity, f"{count:,}", *(f"{found.count(name):,}" for name in names)])
    header = ["what", "severity", "all", *names]
    columns = len(header) if len(names) > 1 else 3
    return Table(header[:columns], [row[:columns] for row in rows], range(2, columns))


def _kind_blocks(severity, kind, found, examination):
    heading = f"{severity.capitalize()}: {kind} ({len(found):,})"
    blocks: list[Block] = [Heading(heading)]
    pictures = []
    for finding in _one_of_each_image(found):
        if len(pictures) == _PICTURES:
            break
        # A file that the data must not name is not shown either.
        is_shown = finding.file_name and kind != OUTSIDE_FOLDER
        drawn = picture_of(finding, examination.partners.get(id(finding))) if is_shown else []
        if drawn:
            place = f", annotation {finding.annotation}" if finding.annotation else ""
            text = _without_folders(finding.found, examination)
            name = _without_folders(finding.file_name, examination)
            pictures.append((drawn, [f"{name}{place}", text]))
    if pictures:
        blocks.append(Pictures(pictures))
    rows = [_row(finding, examination) for finding in found[:_ROWS]]
    header = ["file", "annotation", "found", "right would be", "dataset"]
    is_told = [True, any(row[1] for row in rows), True, True, len(examination.datasets) > 1]
    header, *rows = (list(compress(cells, is_told)) for cells in (header, *rows))
    blocks.append(Table(header, rows, []))
    if len(found) > _ROWS:
        blocks.append(Paragraph(f"The first {_ROWS} of {len(found):,}; findings.json has all."))
    return blocks


def _one_of_each_image(found):
    """First one finding of each image, so that the pictures differ; then the others."""
    first: dict = {}
    for finding in found:
        first.setdefault(finding.file_name, finding)
    return list(first.values())


def _row(finding, examination):
    name = _without_folders(finding.file_name or "", examination)
    if finding.image_id is not None and str(finding.image_id) not in name:
        name += f" (image id {finding.image_id})"
    texts = (_without_folders(text, examination) for text in (finding.found, finding.legal))
    return [name or finding.dataset, finding.annotation or "", *texts, finding.dataset]


def _without_folders(text, examination):
    """Paths relative to the folders of the data, which the first lines name."""
    for about in examination.datasets.values():
        for folder in (about["folder"], os.path.dirname(about["annotation file"] or "")):
            text = text.replace(folder + os.sep, "") if folder else text
    return text


def _is_small(box, size):
    return max((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) < _SMALL_SHARE


def _drawn(image, box, severity):
    scale = _PICTURE_SIDE / max(image.size)
    small = image.resize([max(1, round(side * scale)) for side in image.size])
    if box is not None:
        _draw_box(small, [value * scale for value in box], severity)
    return small


def _part_around(image, box, severity):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(_AROUND * max(abs(box[2] - box[0]), abs(box[3] - box[1])) / 2, 16.0)
    left, top = max(0, int(x - half)), max(0, int(y - half))
    right, bottom = min(image.width, int(x + half) + 1), min(image.height, int(y + half) + 1)
    if right <= left or bottom <= top:  # the box lies outside
        return _drawn(image, box, severity)
    part = image.crop((left, top, right, bottom))
    scale = _PICTURE_SIDE / 2 / max(part.size)
    part = part.resize([max(1, round(side * scale)) for side in part.size])
    _draw_box(part, [(value - low) * scale for value, low in zip(box, (left, top, left, top))], severity)
    return part


def _draw_box(image, box, severity):
    """A box without area, inverted or outside is drawn as well as it can be."""
    corners = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
    limits = (image.width - 1, image.height - 1) * 2
    corners = [min(max(value, 0), limit) for value, limit in zip(corners, limits)]
    draw = ImageDraw.Draw(image)
    for low in (0, 1):  # what is too thin to be seen is widened
        missing = max(0.0, _MIN_DRAWN - (corners[low + 2] - corners[low])) / 2
        corners[low], corners[low + 2] = corners[low] - missing, corners[low + 2] + missing
    draw.rectangle(corners, outline="#ffffff", width=6)
    inner = [corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1]
    draw.rectangle(inner, outline=_COLOURS[severity], width=4)


def _as_jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
