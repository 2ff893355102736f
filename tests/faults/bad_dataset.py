"""Generated datasets with one of each bad record, their expected findings, and clean twins without any."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
NAMES = ["cat", "dog"]


def picture(seed: int, size=(WIDTH, HEIGHT)) -> Image.Image:
    """A smooth pattern that no other seed gives."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, orientation: int = 1, quality: int = 95) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[274] = orientation
    image.save(path, quality=quality, exif=exif)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def write_coco_twin(root: Path) -> list[dict]:
    """Clean COCO data; returns items of DATASETS.CUSTOM, for training and test."""
    _write_coco_split(root, "train", *_clean_content(root / "train", 10, first_seed=0))
    _write_coco_split(root, "val", *_clean_content(root / "val", 4, first_seed=100))
    return coco_items(root)


def coco_items(root: Path) -> list[dict]:
    def item(split):
        return {"NAME": f"{root.name}_{split}", "JSON": str(root / f"{split}.json"), "IMAGES": str(root / split)}

    return [{"FORMAT": "coco", **item(split)} for split in ("train", "val")]


def write_bad_coco(root: Path) -> tuple[list[dict], list[tuple[str, str | None, str | None]]]:
    """COCO data with one of each fault. Returns the items, and (kind, name of the file, annotation) of the findings."""
    images, annotations, categories = _clean_content(root / "train", 3, first_seed=0)
    folder, expected = root / "train", []
    bad_images = _bad_images(folder, expected)
    images += bad_images
    annotations += [_box(100 + n, image["id"], 10, 10, 30, 20) for n, image in enumerate(bad_images) if "id" in image]
    # Faults of images that leave no record take their annotations with them.
    _bad_annotations(folder, images, annotations, expected)
    categories += [{"id": 2, "name": "again"}, {"id": 3, "name": "dog"}, {"id": 4, "name": " "}, {"name": "no id"}]
    expected += [
        ("duplicate category id", "train.json", "id 2 of categories"),
        ("duplicate category name", "train.json", None),
        ("empty category name", "train.json", None),
        ("malformed entry of the annotation file", "train.json", "categories[5]"),
        ("class without examples", "train.json", None),  # the second dog
        ("class without examples", "train.json", None),  # " "
    ]
    _write_coco_split(root, "train", images, annotations, categories)
    # Two of the test images are in the training data: one file copied, one saved again at another size.
    images, annotations, _ = _clean_content(root / "val", 4, first_seed=100)
    shutil.copy(folder / "good_0.jpg", root / "val" / "good_0.jpg")
    save(picture(1, (192, 128)), root / "val" / "good_1.jpg", quality=60)
    images[1].update(width=192, height=128)
    _write_coco_split(root, "val", images, annotations, categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])
    expected += [
        ("identical images in training and test data", "good_0.jpg", None),
        ("near-duplicate images in training and test data", "good_1.jpg", None),
    ]
    return coco_items(root), expected


def write_bad_voc(root: Path) -> tuple[list[dict], list[tuple[str, str | None, str | None]]]:
    """VOC data with faults: files that cannot be parsed, and records."""
    (root / "Annotations").mkdir(parents=True)
    for n in range(6):
        save(picture(n), root / "JPEGImages" / f"good_{n}.jpg")
        write_voc_file(root, f"good_{n}", [("cat", 11, 11, 40, 30), ("dog", 51, 21, 80, 50)])
    write_voc_file(root, "good_1", [("cat", 11, 11, 40, 30), ("dog", 51, 21, 51, 50)])
    write_voc_file(root, "good_2", [("cat", 11, 11, 400, 30), ("dog", 51, 21, 80, 50)])
    (root / "Annotations" / "good_3.xml").write_text("<annotation><object>")
    (root / "Annotations" / "good_4.xml").write_text("<annotation></annotation>")
    write_voc_file(root, "nan", [("cat", 11, 11, 40, 30)])
    path = root / "Annotations" / "nan.xml"
    path.write_text(path.read_text().replace(f"<width>{WIDTH}", "<width>nan"))
    truncate(root / "JPEGImages" / "good_5.jpg")
    save(picture(6), root / "JPEGImages" / "turned.jpg", orientation=6)
    write_voc_file(root, "turned", [("cat", 81, 11, 95, 30)])  # inside the picture before its rotation only
    write_voc_file(root, "gone", [("cat", 11, 11, 40, 30)])
    expected = [
        ("box without area", "good_1.jpg", "1"),
        ("box outside the image", "good_2.jpg", "0"),
        ("annotation file that cannot be read", "good_3.xml", None),
        ("annotation file that cannot be read", "good_4.xml", None),
        ("annotation file that cannot be read", "nan.xml", None),
        ("truncated image", "good_5.jpg", None),
        ("size of the record is that before the EXIF rotation", "turned.jpg", None),
        ("missing image file", "gone.jpg", None),
    ]
    return [{"NAME": f"{root.name}_voc", "FORMAT": "voc", "ROOT": str(root)}], expected


def write_bad_yolo(root: Path) -> tuple[list[dict], list[tuple[str, str | None, str | None]]]:
    """YOLO data with faulty lines, a label file without an image, and a damaged image."""
    lines = ["0 0.3 0.3 0.2 0.2", "1 0.7 0.6 0.2 0.3"]
    for n in range(4):
        save(picture(n), root / "images" / f"good_{n}.jpg")
        path = root / "labels" / f"good_{n}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    (root / "classes.txt").write_text("\n".join(NAMES))
    bad = ["0 0.5", *lines, "7 0.5 0.5 0.1 0.1", "0 0.9 0.5 0.4 0.1", "1 0.7 0.6 0.2 0.3", "0 0.5 0.5 0 0.2"]
    (root / "labels" / "good_1.txt").write_text("\n".join(bad))
    (root / "labels" / "stray.txt").write_text(lines[0])
    truncate(root / "images" / "good_2.jpg")
    file = f"of {root / 'labels' / 'good_1.txt'})"
    expected = [
        ("malformed line", "good_1.jpg", f"0 (line 1 {file}"),
        ("unknown category", "good_1.jpg", f"3 (line 4 {file}"),
        ("box outside the image", "good_1.jpg", f"4 (line 5 {file}"),
        ("same box and class twice in an image", "good_1.jpg", f"5 (line 6 {file}"),
        ("box without area", "good_1.jpg", f"6 (line 7 {file}"),
        ("label file without an image", "stray.txt", None),
        ("truncated image", "good_2.jpg", None),
    ]
    return [{"NAME": f"{root.name}_yolo", "FORMAT": "yolo", "ROOT": str(root)}], expected


def write_bad_identities(root: Path) -> tuple[list[dict], list[tuple[str, str | None, str | None]]]:
    """Faces: one identity in both splits, a picture under two identities, an empty folder, a damaged file."""
    for person in range(4):
        for n in range(3):
            save(picture(10 * person + n), root / "train" / f"p{person}" / f"{n}.jpg")
            save(picture(500 + 10 * person + n), root / "test" / f"q{person}" / f"{n}.jpg")
    shutil.move(root / "test" / "q0", root / "test" / "p0")
    shutil.copy(root / "train" / "p1" / "0.jpg", root / "train" / "p2" / "7.jpg")
    save(picture(31), root / "test" / "q2" / "8.jpg", quality=70)  # of p3
    truncate(root / "train" / "p3" / "2.jpg")
    (root / "train" / "nobody").mkdir()
    items = [{"NAME": f"{root.name}_{s}", "FORMAT": "identities", "ROOT": str(root / s)} for s in ("train", "test")]
    expected = [
        ("identity in training and test data", None, None),
        ("one picture under two identities", "7.jpg", None),
        ("one picture under two identities", "8.jpg", None),
        ("identity without images", "nobody", None),
        ("truncated image", "2.jpg", None),
    ]
    return items, expected


def write_voc_file(root: Path, stem: str, boxes) -> None:
    """Boxes: (name, xmin, ymin, xmax, ymax)."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def _clean_content(folder: Path, count: int, first_seed: int):
    images, annotations = [], []
    for n in range(count):
        save(picture(first_seed + n), folder / f"good_{n}.jpg")
        images.append({"id": n + 1, "file_name": f"good_{n}.jpg", "width": WIDTH, "height": HEIGHT})
        annotations.append(_box(2 * n + 1, n + 1, 10, 10, 30, 20, category=1))
        annotations.append(_box(2 * n + 2, n + 1, 50, 20, 30, 30, category=2))
    return images, annotations, [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def _box(key, image_id, x, y, w, h, category=1, **more):
    return {
        "id": key, "image_id": image_id, "category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], **more,
    }  # fmt: skip


def _bad_images(folder, expected):
    """Image entries with ids from 20, a fault each."""
    images = []

    def add(kind, file, width=WIDTH, height=HEIGHT, **more):
        images.append({"id": 20 + len(images), "file_name": file, "width": width, "height": height, **more})
        if kind is not None:
            expected.append((kind, file, None))

    save(picture(20), folder / "truncated.jpg")
    truncate(folder / "truncated.jpg")
    add("truncated image", "truncated.jpg")
    (folder / "text.jpg").write_text("not an image")
    add("unreadable image", "text.jpg")
    add("missing image file", "missing.jpg")
    Image.fromarray((np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 10).astype(np.uint16)).save(folder / "deep.png")
    add("image with more than 8 bits a channel", "deep.png")
    save(picture(24), folder / "before_exif.jpg", orientation=6)
    add("size of the record is that before the EXIF rotation", "before_exif.jpg")
    save(picture(25), folder / "exif.jpg", orientation=6)
    add("image with an EXIF rotation", "exif.jpg", HEIGHT, WIDTH)
    save(picture(26), folder / "size.jpg")
    add("image size differs from the record", "size.jpg", 200, 100)
    save(picture(27), folder / "no_size.jpg")
    add("image size is not two positive integers", "no_size.jpg", width="96")
    shutil.copy(folder / "good_1.jpg", folder / "copy.jpg")
    add("identical images in one dataset", "copy.jpg")
    save(picture(2), folder / "again.jpg", quality=50)
    add("near-duplicate images in one dataset", "again.jpg")
    add("image file in several records", "good_2.jpg")
    save(Image.new("RGB", (WIDTH, HEIGHT), "gray"), folder / "grey.jpg")
    add("image of one colour", "grey.jpg")
    save(picture(32), folder.parent / "outside.jpg")
    add("file name that leaves the image folder", "../outside.jpg")
    save(picture(33), folder / "twice.jpg")
    images.append({"id": 1, "file_name": "twice.jpg", "width": WIDTH, "height": HEIGHT})
    expected.append(("duplicate image id", "twice.jpg", None))
    images.append({"id": 40, "width": WIDTH, "height": HEIGHT})
    expected.append(("malformed entry of the annotation file", "train.json", "id 40 of images"))
    return images


def _bad_annotations(folder, images, annotations, expected):
    """A picture with a fault in each annotation, one without objects, and entries that belong to no image."""
    # The entry with id 1 that repeats an image id must not add an annotation of its own.
    annotations[:] = [a for n, a in enumerate(annotations) if a["id"] < 100 or a["image_id"] != 1]
    save(picture(50), folder / "empty.jpg")
    save(picture(51), folder / "boxes.jpg")
    images.append({"id": 50, "file_name": "empty.jpg", "width": WIDTH, "height": HEIGHT})
    images.append({"id": 51, "file_name": "boxes.jpg", "width": WIDTH, "height": HEIGHT})
    expected.append(("image without objects", "empty.jpg", None))
    rle = {"size": [HEIGHT, WIDTH], "counts": [10, 10]}
    faults = [
        ("box without area", _box(200, 51, 10, 10, 0, 10)),
        ("inverted box", _box(201, 51, 30, 10, -10, 10)),
        ("box outside the image", _box(202, 51, 80, 10, 40, 10)),
        ("box is not four finite numbers", _box(203, 51, 10, 10, 10, float("nan"))),
        ("box is not four finite numbers", {**_box(204, 51, 10, 10, 10, 10), "bbox": "10, 10"}),
        ("unknown category", _box(205, 51, 11, 10, 10, 10, category=99)),
        ("iscrowd is not 0 or 1", {**_box(206, 51, 12, 10, 10, 10), "iscrowd": None}),
        ("malformed polygon", {**_box(207, 51, 13, 10, 10, 10), "segmentation": [[1, 2, 3, 4]]}),
        ("RLE that does not decode", {**_box(208, 51, 14, 10, 10, 10), "segmentation": rle}),
        ("empty mask", {**_box(209, 51, 15, 10, 10, 10), "segmentation": [[5, 5, 5, 5, 5, 5]]}),
        ("flag that is not supported", _box(210, 51, 16, 10, 10, 10, ignore=1)),
        (None, _box(211, 51, 17, 10, 10, 10)),
        ("same box and class twice in an image", _box(212, 51, 17, 10, 10, 10)),
        ("box that covers the whole image", _box(213, 51, 0, 0, WIDTH, HEIGHT)),
        ("very small object after the resize", _box(214, 51, 50, 50, 1, 1)),
    ]
    for index, (kind, annotation) in enumerate(faults):
        annotations.append(annotation)
        if kind is not None:
            expected.append((kind, "boxes.jpg", f"{index} (id {annotation['id']})"))
    annotations += [_box(1, 2, 40, 5, 20, 10), _box(300, 999, 10, 10, 10, 10), "no mapping", {"id": 301, "image_id": 1}]
    annotations.append({**_box(302, 1, 10, 10, 10, 10), "image_id": [1]})
    expected += [
        ("duplicate annotation id", "train.json", "id 1 of annotations"),
        ("annotation of an unknown image", "train.json", "id 300 of annotations"),
        ("malformed entry of the annotation file", "train.json", f"annotations[{len(annotations) - 3}]"),
        ("malformed entry of the annotation file", "train.json", "id 301 of annotations"),
        ("malformed entry of the annotation file", "train.json", "id 302 of annotations"),
    ]


def _write_coco_split(root, split, images, annotations, categories):
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
