"""Generated scenes whose objects have identities: the class is the shape, the identity is the pattern on it."""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("disc", "square")


def pattern(identity: int, size: int, turn: float) -> np.ndarray:
    """Stripes of an identity's two colours, angle and period, turned by ``turn`` radians: uint8 ``(size, size, 3)``."""
    own = np.random.RandomState(1000 + identity)
    colors, angle, period = own.randint(0, 256, (2, 3)), own.rand() * np.pi, own.uniform(5, 12)
    y, x = np.mgrid[:size, :size]
    stripes = np.sin(2 * np.pi * (x * np.cos(angle + turn) + y * np.sin(angle + turn)) / period) > 0
    return colors[stripes.astype(int)].astype(np.uint8)


def draw_scene(rng: np.random.RandomState, identities, size: int = 128) -> tuple[np.ndarray, list[dict]]:
    """A noisy image, uint8 ``(size, size, 3)``, and annotations of up to four objects that do not overlap."""
    image = np.clip(rng.normal(rng.randint(60, 200), 20, (size, size, 3)), 0, 255).astype(np.uint8)
    annotations = []
    for cell in rng.permutation(4)[: rng.randint(2, 5)]:
        side = rng.randint(size // 4, size * 7 // 16)
        x, y = (int(c * size // 2 + rng.randint(0, size // 2 - side + 1)) for c in (cell % 2, cell // 2))
        kind, identity = rng.randint(2), int(rng.choice(identities))
        if kind == 0:
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * side / 2 + [x + side / 2, y + side / 2]
        else:
            points = np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], dtype=float)
        mask = cv2.fillPoly(np.zeros((size, size), np.uint8), [points.round().astype(np.int32)], 1).astype(bool)
        light = rng.uniform(0.8, 1.2)
        texture = np.clip(pattern(identity, size, rng.uniform(-0.15, 0.15)) * light, 0, 255).astype(np.uint8)
        image[mask] = texture[mask]
        low, high = points.min(axis=0), points.max(axis=0)
        box = [*low.tolist(), *(high - low).tolist()]
        annotations.append({
            "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": kind + 1,
            "segmentation": [points.flatten().tolist()], "identity": f"pattern {identity}",
        })  # fmt: skip
    return image, annotations


def write_scenes(folder: Path, identities, num_images: int, seed: int, size: int = 128) -> dict:
    """Write scenes as a COCO file with images; returns their item of DATASETS.CUSTOM."""
    folder.mkdir(parents=True)
    rng = np.random.RandomState(seed)
    images, annotations = [], []
    for number in range(1, num_images + 1):
        image, found = draw_scene(rng, identities, size)
        cv2.imwrite(str(folder / f"{number}.png"), image)
        images.append({"id": number, "file_name": f"{number}.png", "height": size, "width": size})
        annotations += [{**a, "id": len(annotations) + i + 1, "image_id": number} for i, a in enumerate(found)]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "scenes.json").write_text(json.dumps(content))
    item = {"NAME": f"scenes_{folder.name}", "FORMAT": "coco", "JSON": str(folder / "scenes.json")}
    return {**item, "IMAGES": str(folder)}
