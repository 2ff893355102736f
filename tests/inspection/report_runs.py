"""Folders of runs with known content, and how a page is read."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

STRANGE_CLASS = '<b>cell & "co"</b>'


def write_detection_run(folder: Path, name: str = "cells_val") -> Path:
    """A run of Detectron2's own trainer on five images with two objects of one class each, 40 pixels wide.

    Of the ten objects eight are found exactly, with score 0.9; one is missed in each of the last two images. Two
    detections of score 0.3 lie on the background. The last image file does not exist. metrics.json has a repeated
    part, and a line that was torn by a kill.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": 7, "name": STRANGE_CLASS}]}
    found = []
    for image in range(1, 6):
        file = f"{image}.png"
        if image < 5:
            Image.fromarray(np.full((100, 200, 3), 90, np.uint8)).save(images / file)
        coco["images"].append({"id": image, "file_name": file, "width": 200, "height": 100})
        for place in (0, 1):
            box = [10 + 100 * place, 10, 40, 40]
            number = len(coco["annotations"]) + 1
            coco["annotations"].append(
                {"id": number, "image_id": image, "category_id": 7, "bbox": box, "area": 1600, "iscrowd": 0}
            )
            if number not in (8, 10):
                found.append({"image_id": image, "category_id": 7, "bbox": box, "score": 0.9})
    found += [{"image_id": image, "category_id": 7, "bbox": [60, 60, 30, 30], "score": 0.3} for image in (1, 5)]
    (folder / "cells.json").write_text(json.dumps(coco))
    run = folder / "run<i>"
    (run / "inference").mkdir(parents=True)
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    (run / "config.yaml").write_text(
        f"""VERSION: 2
DATASETS:
  TRAIN: ["{name}"]
  TEST: ["{name}"]
  CUSTOM:
    - {{NAME: {name}, FORMAT: coco, JSON: "{folder / "cells.json"}", IMAGES: "{images}"}}
MODEL:
  META_ARCHITECTURE: FocalRetinaNet
  DEVICE: cpu
SOLVER:
  IMS_PER_BATCH: 4
  MAX_ITER: 200
"""
    )
    # The run was killed after iteration 59, and went on from 40.
    rows = [training_row(iteration) for iteration in (19, 39, 59, 59, 79)]
    text = "\n".join(json.dumps(row) for row in rows)
    (run / "metrics.json").write_text(text + '\n{"bbox/AP": 80.2, "bbox/AP50": 80.2, "iteration": 80}\n{"iterat')
    return run


def training_row(iteration: int) -> dict:
    return {
        "iteration": iteration, "total_loss": 100 / (1 + iteration), "loss_cls": 1.0, "lr": 0.01, "time": 0.5,
        "data_time": 0.25,
    }  # fmt: skip


class Page(HTMLParser):
    """The text of a page: headings, and tables as rows of cells; what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.headings, self.rows, self.loaded = "", [], [], []
        self._heading = self._hidden = self._cell = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attributes):
        self._heading = self._heading or tag in ("h1", "h2")
        self._hidden = self._hidden or tag in ("style", "script")
        if tag in ("h1", "h2"):
            self.headings.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True
        self.loaded += [value for key, value in attributes if key in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        self._heading = self._heading and tag not in ("h1", "h2")
        self._hidden = self._hidden and tag not in ("style", "script")
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._hidden:
            return
        self.text += f" {data}"
        if self._heading:
            self.headings[-1] += data
        elif self._cell:
            self.rows[-1][-1] += data.replace("\u00a0", " ")

    def row(self, first: str) -> list[str]:
        """The first row of any table that starts with this cell."""
        return next(row for row in self.rows if row and row[0] == first)
