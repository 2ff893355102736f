"""The training loader on both engines: reading, augmenting and mapping an image, and batches by number of workers.

The engine of ``retinanet_ext`` is fixed per process, so each engine has its own process.
"""

import itertools
import os
import tempfile
import time
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Sampler

from benchmarks.measure import Case, format_cases, has_detectron2, make_parser, print_header, write_cases

WIDTH, HEIGHT = 640, 480
BOXES_PER_IMAGE = 7
CLASSES = 80
ENGINES = {"lite": "lite", "detectron2": "Detectron2"}


# ---- data


def write_images(folder: Path, count: int) -> list[dict]:
    """Write JPEG files of about 100 kB (clouds with a little noise), and return their records, with random boxes."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        clouds = cv2.resize(
            rng.uniform(0, 255, (HEIGHT // 40, WIDTH // 40, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        pixels = np.clip(clouds + rng.normal(0, 5, clouds.shape), 0, 255).astype(np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        corner = rng.uniform(0, [WIDTH / 2, HEIGHT / 2], (BOXES_PER_IMAGE, 2))
        boxes = np.concatenate([corner, rng.uniform(8, HEIGHT / 2, (BOXES_PER_IMAGE, 2))], axis=1)
        record = {"file_name": str(path), "width": WIDTH, "height": HEIGHT, "image_id": number}
        records.append({**record, "annotations": [_annotation(rng, box) for box in boxes.tolist()]})
    return records


def _annotation(rng: np.random.Generator, xywh: list[float]) -> dict:
    return {"bbox": xywh, "bbox_mode": 1, "category_id": int(rng.integers(CLASSES)), "iscrowd": 0}


class InOrder(Sampler):
    """Yields 0, 1, 2 ... size - 1 again and again."""

    def __init__(self, size: int):
        self._size = size

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(range(self._size))


# ---- what a process does


class Subject:
    """Loading on the engine of this process. All methods but ``fingerprints`` return seconds per image."""

    def __init__(self, records: list[dict], settings: Namespace):
        from retinanet_ext import d2  # here, because the import chooses the engine

        torch.set_num_threads(settings.threads)
        # glibc reuses freed blocks only up to the size of the largest block that was ever freed. In a run, building the
        # model has freed a large block by now. Without this line, the imports would decide whether each image costs
        # thousands of page faults.
        np.empty(2**24, dtype=np.uint8)
        self._engine = d2
        self._records = [self._in_mode_of_engine(record) for record in records]
        self._settings = settings
        self._cfg = d2.get_cfg()
        self._cfg.INPUT.MIN_SIZE_TRAIN = (settings.size,)
        self._cfg.SOLVER.IMS_PER_BATCH = settings.batch
        self._mapper = d2.DatasetMapper(self._cfg, is_train=True)
        self._images = [self._read(record) for record in records]

    def _in_mode_of_engine(self, record: dict) -> dict:
        mode = self._engine.BoxMode
        return {**record, "annotations": [{**a, "bbox_mode": mode(a["bbox_mode"])} for a in record["annotations"]]}

    def _read(self, record: dict) -> np.ndarray:
        return self._engine.detection_utils.read_image(record["file_name"], format=self._cfg.INPUT.FORMAT)

    def decode(self) -> float:
        return _seconds_each(self._read, self._records)

    def augment(self) -> float:
        transforms = self._engine.T
        augment = transforms.AugmentationList(self._engine.detection_utils.build_augmentation(self._cfg, True))
        return _seconds_each(lambda image: augment(transforms.AugInput(image)), self._images)

    def mapper(self) -> float:
        return _seconds_each(self._mapper, self._records)

    def loader(self, num_workers: int) -> float:
        """In the steady state: the batches that the workers load in advance are used up before the clock starts.

        Measured over all images once, or over three times the workers' advance if that is more.
        """
        batches = self._batches(self._mapper, num_workers)
        advance = 2 * num_workers
        for _ in range(1 + 2 * advance):
            next(batches)
        count = max(len(self._records) // self._settings.batch, 3 * advance, 1)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - start) / (count * self._settings.batch)

    def fingerprints(self) -> list[list[tuple]]:
        """For every image, without and with a flip: id, shape, CRC-32 of the pixels, boxes and classes."""
        transforms, found = self._engine.T, []
        for flip in (0.0, 1.0):
            resize = transforms.ResizeShortestEdge(self._settings.size, self._cfg.INPUT.MAX_SIZE_TRAIN, "choice")
            augmentations = [resize, transforms.RandomFlip(prob=flip)]
            mapper = self._engine.DatasetMapper(True, augmentations=augmentations, image_format="BGR")
            batches = itertools.islice(self._batches(mapper, 0), len(self._records) // self._settings.batch)
            found.append([_fingerprint(sample) for batch in batches for sample in batch])
        return found

    def _batches(self, mapper: Callable, num_workers: int) -> Iterator[list[dict]]:
        self._cfg.DATALOADER.NUM_WORKERS = num_workers
        sampler = InOrder(len(self._records))
        loader = self._engine.build_detection_train_loader(
            self._cfg, mapper=mapper, dataset=self._records, sampler=sampler
        )
        return iter(loader)


def _seconds_each(function: Callable, items: Sequence) -> float:
    start = time.perf_counter()
    for item in items:
        function(item)
    return (time.perf_counter() - start) / len(items)


def _fingerprint(sample: dict) -> tuple:
    instances = sample["instances"]
    pixels = zlib.crc32(sample["image"].numpy().tobytes())
    boxes, classes = instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist()
    return sample["image_id"], tuple(sample["image"].shape), pixels, boxes, classes


class Worker(ProcessPoolExecutor):
    """A pool of one process, which holds a :class:`Subject`."""

    def __init__(self, engine: str, records: list[dict], settings: Namespace):
        super().__init__(1, mp_context=get_context("spawn"))
        self.submit(_build, engine, records, settings).result()

    def ask(self, method: str, *args: Any) -> Any:
        return self.submit(_call, method, args).result()


def _build(engine: str, records: list[dict], settings: Namespace) -> None:
    os.environ["RETINANET_EXT_ENGINE"] = engine
    # A spawned process would also spawn its loader workers; a run forks them.
    set_start_method("fork", force=True)
    global _subject
    _subject = Subject(records, settings)


def _call(method: str, args: tuple) -> Any:
    return getattr(_subject, method)(*args)


# ---- measurement


def available_engines() -> list[str]:
    """The last engine is the reference."""
    return list(ENGINES) if has_detectron2() else ["lite"]


@contextmanager
def open_workers(engines: Sequence[str], settings: Namespace) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        records = write_images(Path(folder), settings.images)
        yield {ENGINES[engine]: stack.enter_context(Worker(engine, records, settings)) for engine in engines}


def measure(workers: dict[str, Worker], settings: Namespace) -> dict[str, list[Case]]:
    """Title -> table: one case per engine, seconds per image, timed in turns.

    Raises:
        RuntimeError: samples differ from the last worker's. Nothing is timed then.
    """
    samples = {name: worker.ask("fingerprints") for name, worker in workers.items()}
    reference = list(workers)[-1]
    for name, found in samples.items():
        if found != samples[reference]:
            pairs = zip(itertools.chain(*found), itertools.chain(*samples[reference]))
            different = sorted({ours[0] for ours, theirs in pairs if ours != theirs})
            raise RuntimeError(f"samples of {name} differ from those of {reference}: image ids {different[:10]}")
    questions = {"decode": ("decode",), "resize and flip": ("augment",), "whole mapper": ("mapper",)}
    for count in settings.workers:
        questions[f"loader, {count} worker{'s' * (count != 1)}"] = ("loader", count)
    return {title: _in_turns(workers, question, settings.repeats) for title, question in questions.items()}


def _in_turns(workers: dict[str, Worker], question: tuple, repeats: int) -> list[Case]:
    cases = [
        Case(name, run=lambda worker=worker: worker.ask(*question), difference=0.0) for name, worker in workers.items()
    ]
    for number in range(1 + repeats):  # the first round warms up
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            seconds = case.run()
            if number:
                case.seconds.append(seconds)
    return cases


def format_rates(tables: dict[str, list[Case]]) -> str:
    """Markdown: images per second of every loader, by number of workers."""
    lines = ["| images/s | " + " | ".join(title for title in tables) + " |", "|---" * (1 + len(tables)) + "|"]
    for cases in zip(*tables.values()):
        rates = [f"{1 / np.median(case.seconds):.0f}" for case in cases]
        lines.append(f"| {cases[0].name} | " + " | ".join(rates) + " |")
    return "\n".join(lines)


def parse_arguments(words: Sequence[str] | None = None) -> Namespace:
    parser = make_parser("The training loader on both engines", repeats=5)
    parser.add_argument("--images", type=int, default=100, help=f"JPEG files of {WIDTH}x{HEIGHT}")
    parser.add_argument("--size", type=int, default=800, help="INPUT.MIN_SIZE_TRAIN")
    parser.add_argument("--batch", type=int, default=2, help="images per batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of worker processes")
    return parser.parse_args(words)


def main() -> None:
    settings = parse_arguments()
    header = print_header(settings)
    with open_workers(available_engines(), settings) as workers:
        tables = measure(workers, settings)
    for title, cases in tables.items():
        print(format_cases(cases, cases[-1], f"{title}, per image"), end="\n\n")
    print(format_rates({title: cases for title, cases in tables.items() if title.startswith("loader")}))
    write_cases(settings.json, header, tables)


if __name__ == "__main__":
    main()
