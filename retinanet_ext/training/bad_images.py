"""Images that cannot be read in the middle of training: counted over all processes, listed, and stopped at a budget."""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

from retinanet_ext.d2 import CfgNode, comm, hooks
from retinanet_ext.data.replacing_mapper import BAD_IMAGES, NOTHING_READ
from retinanet_ext.machine.atomic_file import write_atomically

from .run_record import add_to_run_record

BUDGET_KEY = "DATASETS.BAD_IMAGE_BUDGET"
FILE_NAME = "bad_images.json"

logger = logging.getLogger(__name__)


def budget_in_images(cfg: CfgNode, num_images: int) -> int:
    """How many different images of ``num_images`` may be unreadable: DATASETS.BAD_IMAGE_BUDGET, a share rounded up."""
    budget = cfg.DATASETS.BAD_IMAGE_BUDGET
    return math.ceil(budget * num_images) if budget < 1 else int(budget)


class ReportingLoader:
    """Wraps a training loader, and takes the list of unreadable images out of each batch.

    All attributes are those of the wrapped loader, also when they are set.
    """

    def __init__(self, loader: Iterable[list[dict]]) -> None:
        """``loader``: its mapper is a :class:`ReplacingMapper`; it gives batches as lists of samples."""
        vars(self).update(_loader=loader, _found=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # while it is copied, `_loader` is not there yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)

    def __iter__(self) -> Iterator[list[dict]]:
        return map(self._take_out, self._loader)

    def has_news(self) -> bool:
        """Whether there are unreadable images since the last :meth:`found`. A training step tells it all processes."""
        return bool(self._found)

    def found(self) -> list[dict]:
        """The unreadable images of the batches since the last call."""
        found = list(self._found)
        self._found.clear()
        return found

    def _take_out(self, batch: list[dict]) -> list[dict]:
        for sample in batch:
            bad = sample.pop(BAD_IMAGES, [])
            self._found.extend(bad)
            if NOTHING_READ in sample:
                raise ValueError(
                    f"{len(bad)} training images in a row cannot be read, the first of them {bad[0]['file_name']}: "
                    f"{bad[0]['reason']}. Is the folder still there, and the disk or network it is on?"
                )
        return batch


class BadImagesHook(hooks.HookBase):
    """Counts the images that were replaced, over all processes, and ends the run when there are too many.

    ``bad_images.json`` in the output folder lists them; a resumed run goes on with what it lists up to its first
    iteration. Register the hook on every process, before the hook that saves checkpoints.
    """

    def __init__(self, output_dir: str, budget: int) -> None:
        """``budget``: this many different images may be unreadable."""
        self._path = os.path.join(output_dir, FILE_NAME)
        self._budget = budget
        self._images: dict[str, dict] = {}  # by file name

    def before_train(self) -> None:
        start = self.trainer.start_iter
        # Only the main process reads, so that all go on with the same list.
        earlier = comm.all_gather(self._read() if comm.is_main_process() and start > 0 else [])[0]
        self._images = {}
        for image in earlier:
            image["iterations"] = [iteration for iteration in image["iterations"] if iteration < start]
            if image["iterations"]:
                self._images[image["file_name"]] = image
        if comm.is_main_process() and (self._images or os.path.exists(self._path)):
            self._write()

    def after_step(self) -> None:
        # Exchanging lists takes milliseconds, so the processes do it only if one of them has something to say.
        if not self.trainer._trainer.loader_has_news:
            return
        news = [image for found in comm.all_gather(self._found()) for image in found]
        if not news:
            return
        self._add(news)
        if comm.is_main_process():
            self._write()
        if len(self._images) > self._budget:
            raise ValueError(self._too_many())

    def after_train(self) -> None:
        # After an error, the other processes may be gone, so nothing is exchanged.
        news = self._found()
        self._add(news)
        if news:
            self._write()
        if not comm.is_main_process() or not self._images:
            return
        add_to_run_record(os.path.dirname(self._path), {"bad_images": self._content()})
        logger.warning(
            "%d images could not be read in training, %d times in all. %s lists them",
            len(self._images), self._content()["times"], self._path,
        )  # fmt: skip

    def _found(self) -> list[dict]:
        loader = self.trainer.data_loader
        found = loader.found() if isinstance(loader, ReportingLoader) else []
        return [{**image, "iteration": self.trainer.iter} for image in found]

    def _add(self, news: list[dict]) -> None:
        for image in news:
            name, iteration = image["file_name"], image.pop("iteration")
            if name not in self._images:
                self._images[name] = {**image, "iterations": []}
                logger.warning(
                    "Cannot read %s (image id %s): %s. Training takes another image in its place. Unreadable images so "
                    "far: %d; %s allows %d",
                    name, image["image_id"], image["reason"], len(self._images), BUDGET_KEY, self._budget,
                )  # fmt: skip
            self._images[name]["iterations"].append(iteration)

    def _content(self) -> dict:
        images = [{**image, "times": len(image["iterations"])} for image in self._images.values()]
        total = sum(image["times"] for image in images)
        return {"budget": self._budget, "different_images": len(images), "times": total, "images": images}

    def _write(self) -> None:
        # Any process may write after an error.
        write_atomically(self._path, json.dumps(self._content(), indent=2) + "\n", shared=True)

    def _read(self) -> list[dict]:
        if not os.path.exists(self._path):
            return []
        try:
            with open(self._path, encoding="utf-8") as file:
                images = json.load(file)["images"]
            return [{key: i[key] for key in ("file_name", "image_id", "reason", "iterations")} for i in images]
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            logger.warning("%s cannot be read (%s); unreadable images are counted anew", self._path, what)
            return []

    def _too_many(self) -> str:
        shown = [f"{name}: {image['reason']}" for name, image in list(self._images.items())[-3:]]
        return (
            f"{len(self._images)} training images cannot be read, and {BUDGET_KEY} allows {self._budget}; {self._path} "
            f"lists them. The last: {'; '.join(shown)}. Correct the files, or raise the budget, and start again with "
            "--resume. DATASETS.CHECK_IMAGES decode finds such files before a run."
        )


def bad_images_hooks(trainer) -> list[BadImagesHook]:
    """The hook for a trainer whose loader replaces images; none for other loaders."""
    loader = trainer.data_loader
    if not isinstance(loader, ReportingLoader):
        return []
    return [BadImagesHook(trainer.cfg.OUTPUT_DIR, budget_in_images(trainer.cfg, loader.num_images))]
