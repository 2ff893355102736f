"""The page of `compare`: differences with intervals, and the images that changed most, side by side."""

import io
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from retinanet_ext.evaluation.evaluated_dataset import EvaluatedDataset
from retinanet_ext.evaluation.paired_comparison import Comparison, Difference
from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.report.document import Block, Bullets, Facts, Heading, Paragraph, Pictures, Table
from retinanet_ext.report.formats import NOTHING
from retinanet_ext.report.html_page import to_html

_SIDE = 480  # pixels, of the longer side of a picture
_TRUTH, _FOUND = "#2f9e44", "#f76707"
HEADER = ("metric", "first", "second", "difference", "95 % interval", "second better in")


def difference_row(name: str, one: Difference) -> list[str]:
    """The cells of :data:`HEADER`."""
    change = one.change
    interval = f"{change.low:+.2f} to {change.high:+.2f}" if change.samples else NOTHING
    share = NOTHING if change.samples == 0 else f"{100 * one.share_better:.0f} %"
    values = [NOTHING if math.isnan(value) else f"{value:.2f}" for value in (one.first, one.second)]
    return [name, *values, NOTHING if math.isnan(change.value) else f"{change.value:+.2f}", interval, share]


def write_comparison_page(
    path: Path, comparison: Comparison, first: EvaluatedDataset, second: EvaluatedDataset, names: tuple[str, str]
) -> None:
    """Write one self-contained HTML page.

    Args:
        path: of the file.
        comparison: of the two.
        first, second: what was compared; their pictures are drawn where the files exist.
        names: what the reader calls the two.
    """
    blocks: list[Block] = [
        Facts([("first", names[0]), ("second", names[1]), ("data", comparison.dataset), ("task", comparison.task),
               ("images", str(comparison.num_images)), ("images with other counts", str(comparison.num_changed))]),
        Heading("Differences"),
        Table(HEADER, [difference_row(name, one) for name, one in comparison.metrics.items()]),
        Paragraph("Intervals: bootstrap over images, the same images for both. A difference is clear if its interval "
                  "does not hold 0."),
        Bullets([f"{name} is undefined: {reason}" for name, reason in comparison.reasons.items()]),
        Heading("Images that changed most"),
        Paragraph("By the change of F1 at the operating threshold of each class (the best F1 of each of the two). "
                  "Green: ground truth; orange: detections. Left the first, right the second."),
    ]  # fmt: skip
    items = [_changed(comparison, index, first, second) for index in range(len(comparison.images))]
    blocks.append(Pictures(items) if items else Paragraph("No image changed."))
    write_atomically(path, to_html("Comparison of two evaluations", blocks))


def _changed(comparison, index, first, second):
    change = comparison.images[index]
    pictures = []
    for data, thresholds in zip((first, second), comparison.thresholds):
        picture = _picture(data, change.image_id, thresholds)
        if picture is not None:
            pictures.append(picture)
    name = first.image_record(change.image_id).get("file_name", "")
    lines = [f"{name} (image {change.image_id})", f"F1 {change.f1[0]:.2f} → {change.f1[1]:.2f}"]
    for label, values in (("hits", change.tp), ("false alarms", change.fp), ("missed", change.fn)):
        lines.append(f"{label} {values[0]} → {values[1]}")
    if not pictures:
        lines.append("the picture cannot be read")
    return pictures, lines


def _picture(data: EvaluatedDataset, image_id, thresholds) -> bytes | None:
    """The image with its objects and the detections from the thresholds on, as JPEG; None if it cannot be read."""
    try:
        with Image.open(data.image_path(image_id)) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError):
        return None
    scale = min(1.0, _SIDE / max(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    draw = ImageDraw.Draw(image)
    for annotation in data.objects(image_id):
        _rectangle(draw, annotation["bbox"], scale, _TRUTH)
    found = data.predictions.get(image_id)
    numbers = {class_id: k for k, class_id in enumerate(data.truth.category_ids)}
    for row in range(len(found) if found is not None else 0):
        k = numbers[int(found.classes[row])]
        if found.scores[row] >= thresholds[k]:
            x, y = _rectangle(draw, found.boxes[row], scale, _FOUND)
            draw.text((x + 2, y + 1), f"{data.class_names[k]} {found.scores[row]:.2f}", fill=_FOUND)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return content.getvalue()


def _rectangle(draw, box, scale, colour):
    x, y, width, height = (float(value) * scale for value in box)
    draw.rectangle([x, y, max(x, x + width), max(y, y + height)], outline=colour, width=2)
    return x, y
