"""Minutes and peak memory of ``retinanet-ext doctor data`` on many generated records: small JPEGs, boxes and polygons.

One annotation in a thousand has no area, and one image in a thousand is a copy, so that there is something to find.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, PER_FOLDER, ANNOTATIONS, CLASSES, BAD = 32, 1000, 7, 80, 1000
CONFIG = "quick/retinanet.yaml"


def write_data(root: Path, records: int, first_seed: int) -> None:
    """Write ``root/images`` and ``root/annotations.json``."""
    rng = np.random.default_rng(first_seed)
    images, annotations = [], []
    for number in range(records):
        name = f"{number // PER_FOLDER:04d}/{number:06d}.jpg"
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % BAD == BAD - 1:
            shutil.copyfile(root / "images" / images[-1]["file_name"], path)
        else:
            noise = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
        images.append({"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE})
        for x, y, w, h in rng.uniform([0, 0, 4, 4], [20, 20, 12, 12], (ANNOTATIONS, 4)).round(2).tolist():
            key = len(annotations) + 1
            annotations.append({
                "id": key, "image_id": number + 1, "category_id": key % CLASSES + 1, "iscrowd": 0, "area": w * h,
                "bbox": [x, y, 0 if key % BAD == 0 else w, h],
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
    categories = [{"id": number + 1, "name": f"class {number + 1}"} for number in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))


def run_doctor(folder: Path, workers: int) -> tuple[float, float, str]:
    """Minutes, peak memory in GB and the output of the verb, in a process of its own."""
    items = [
        {"NAME": f"doctor_{split}", "FORMAT": "coco", "JSON": str(folder / split / "annotations.json"),
         "IMAGES": str(folder / split / "images")}
        for split in ("train", "test")
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "retinanet_ext.cli.main", "doctor", "data", "--config-file", CONFIG, "--workers",
        str(workers), "--output", str(folder / "out"), "DATASETS.CUSTOM", str(items), "DATASETS.TRAIN",
        "('doctor_train',)", "DATASETS.TEST", "('doctor_test',)",
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    minutes = (time.perf_counter() - start) / 60
    if done.returncode not in (0, 1):
        sys.exit(f"doctor ended with exit status {done.returncode}")
    return minutes, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="of both splits (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, test = Path(name), args.records // 10
        write_data(folder / "train", args.records - test, first_seed=0)
        write_data(folder / "test", test, first_seed=1)
        minutes, memory, output = run_doctor(folder, args.workers)
        pages = {path.name: path.stat().st_size for path in (folder / "out").iterdir()}
    print(output)
    figures = {
        "records": args.records, "annotations": args.records * ANNOTATIONS, "workers": args.workers,
        "minutes": round(minutes, 2), "peak memory, GB": round(memory, 2), "bytes written": pages,
    }  # fmt: skip
    print(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
