"""Names of a dataset's keypoints, and the lines that a picture draws between them."""

import colorsys

from retinanet_ext.d2 import MetadataCatalog

from .coco_file import read_coco_file


def dataset_skeleton(dataset_name: str) -> tuple[list[str], list[list]]:
    """Keypoint names and lines, each ``[name, name, [red, green, blue]]``, of a registered dataset; [] where unknown.

    The metadata ``keypoint_names`` and ``keypoint_connection_rules`` come first, then the first category with
    ``keypoints`` in the annotation file: its names, and its ``skeleton`` of pairs that count the names from 1.

    Raises:
        ValueError: the skeleton names a keypoint that does not exist.
    """
    metadata = MetadataCatalog.get(dataset_name)
    names = list(metadata.get("keypoint_names", None) or [])
    lines = [[a, b, [int(v) for v in color]] for a, b, color in metadata.get("keypoint_connection_rules", None) or []]
    file = metadata.get("json_file", None)
    if lines or file is None:
        return names, lines
    categories = read_coco_file(file).get("categories", [])
    category = next((c for c in categories if c.get("keypoints")), {})
    names = names or [str(name) for name in category.get("keypoints", [])]
    pairs = category.get("skeleton", []) if len(names) == len(category.get("keypoints", [])) else []
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(k, int) and 1 <= k <= len(names) for k in pair):
            raise ValueError(
                f"{file}: category {category.get('name')!r} has the skeleton line {pair}; legal: two numbers of "
                f"keypoints, from 1 to {len(names)}"
            )
    return names, [[names[a - 1], names[b - 1], color] for (a, b), color in zip(pairs, _colors(len(pairs)))]


def _colors(count: int) -> list[list[int]]:
    """Bright colours, RGB in 0 to 255, evenly around the circle of hues."""
    return [[round(255 * value) for value in colorsys.hsv_to_rgb(k / count, 0.9, 1.0)] for k in range(count)]
