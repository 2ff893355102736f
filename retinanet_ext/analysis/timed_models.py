"""Accuracy against measured speed (Focal Loss paper, Figure 2 and Table 1e)."""

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.d2 import ENGINE, CfgNode, build_model
from retinanet_ext.inference.fast_copy import inference_model
from retinanet_ext.machine.cpu import keep_freed_memory, processor_name
from retinanet_ext.machine.devices import check_device
from retinanet_ext.training.trainer import Trainer

from .picture_style import COLORS, GREY, new_figure

# Images that every model sees before its times count, so that libraries choose their kernels and caches fill.
WARMUP = 5
# Milliseconds and AP on COCO test-dev, on an Nvidia M40: Table 1e at 400, 500, 600, 700 and 800 pixels, and the other
# models of Figure 2. (The figure has 73 ms for RetinaNet-50-500, the table 72.)
PAPER_DEVICE = "Nvidia M40"
PAPER_RETINANET = {
    "RetinaNet-50": [(64, 30.5), (72, 32.5), (98, 34.3), (121, 35.1), (153, 35.7)],
    "RetinaNet-101": [(81, 31.9), (90, 34.4), (122, 36.0), (154, 37.1), (198, 37.8)],
}
PAPER_OTHERS = {
    "YOLOv2": (25, 21.6),
    "SSD321": (61, 28.0),
    "DSSD321": (85, 28.0),
    "R-FCN": (85, 29.9),
    "SSD513": (125, 31.2),
    "DSSD513": (156, 33.2),
    "FPN FRCN": (172, 36.2),
}


@dataclass(frozen=True)
class Subject:
    """One trained model.

    Attributes:
        name: its name in tables and pictures.
        cfg: its config; it is measured on the first dataset of ``DATASETS.TEST``.
        model: loaded, in evaluation mode, converted as ``TEST.DTYPE``, ``COMPILE`` and ``CUDA_GRAPHS`` say.
    """

    name: str
    cfg: CfgNode
    model: nn.Module

    @property
    def dataset(self) -> str:
        return self.cfg.DATASETS.TEST[0]

    @property
    def device(self) -> torch.device:
        return torch.device(self.cfg.MODEL.DEVICE)


@dataclass(frozen=True)
class Row:
    """Measurements of a subject: AP and AP50 in 0-100, None if undefined; one time per image."""

    name: str
    ap: float | None
    ap50: float | None
    milliseconds: list[float]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the milliseconds."""
        if len(self.milliseconds) == 1:
            return (self.milliseconds[0],) * 3
        return tuple(statistics.quantiles(self.milliseconds, n=4, method="inclusive"))


def load_subject(name: str, cfg: CfgNode, weights: str) -> Subject:
    """Build the model of ``cfg`` with the weights of a checkpoint.

    Raises:
        ValueError: no test dataset, no such device, or weights that do not fit.
        FileNotFoundError: no file ``weights`` (on Detectron2 a ValueError).
    """
    if not cfg.DATASETS.TEST:
        raise ValueError(f"{name}: DATASETS.TEST names no dataset to measure on")
    check_device(cfg.MODEL.DEVICE)
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        keep_freed_memory()
    model = build_model(cfg)
    load_weights(model, weights, strict=True)
    return Subject(name, cfg, inference_model(cfg, model).eval())


def evaluate(subject: Subject, output_dir: str) -> dict:
    """Metrics of the subject on its dataset, as in ``results.json``; the evaluation's files go to ``output_dir``."""
    cfg = subject.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = output_dir
    cfg.DATASETS.TEST = (subject.dataset,)
    # The model is already the copy for inference.
    cfg.TEST.DTYPE, cfg.TEST.COMPILE, cfg.TEST.CUDA_GRAPHS = "float32", False, False
    return Trainer.test(cfg, subject.model)


def read_images(subject: Subject, num_images: int) -> list[list[dict]]:
    """The first images of the subject's dataset, resized as the subject takes them, one per batch.

    Raises:
        ValueError: ``num_images`` is less than 1, or the dataset does not pass its checks.
    """
    if num_images < 1:
        raise ValueError(f"the number of images is {num_images}; it must be at least 1")
    return list(islice(Trainer.build_test_loader(subject.cfg, subject.dataset), num_images))


@torch.no_grad()
def time_in_turns(subjects: Sequence[Subject], inputs: Sequence[list[list[dict]]]) -> list[list[float]]:
    """Milliseconds of each image, for each subject: from the resized image in memory to detections at its full size.

    The times include copying the image to the device and NMS, but not reading and resizing the image. All subjects see
    an image in turn, and each time another subject comes first, so that a drift of the machine affects all alike.
    ``WARMUP`` rounds run first and do not count.

    Args:
        subjects: the models.
        inputs: the images of each subject, from :func:`read_images`; the same images for all subjects.
    """
    times = [[] for _ in subjects]
    num_images = len(inputs[0])
    for number in range(-WARMUP, num_images):
        for turn in range(len(subjects)):
            k = (number + turn) % len(subjects)
            start = _now(subjects[k].device)
            subjects[k].model(inputs[k][number % num_images])
            elapsed = _now(subjects[k].device) - start
            if number >= 0:
                times[k].append(1000 * elapsed)
    return times


def _now(device: torch.device) -> float:
    """Time in seconds, read after ``device``, which need not be the current one, has finished all work given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def conditions(device: str) -> dict[str, str]:
    """What the times depend on besides the models: device, threads, engine, versions."""
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{processor_name()}, {torch.get_num_threads()} thread(s)"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": name, "engine": ENGINE, **versions, **({"cuda": torch.version.cuda} if on_gpu else {})}


def draw(rows: Sequence[Row], device: str, dataset: str) -> Figure:
    """AP against milliseconds: the measurements on the left, the paper's figure on the right."""
    figure, (here, paper) = new_figure(panels=2)
    for index, row in enumerate(rows):
        if row.ap is None:
            continue
        low, middle, high = row.quartiles
        color = COLORS[index % len(COLORS)]
        here.errorbar(middle, row.ap, xerr=[[middle - low], [high - middle]], fmt="o", color=color, capsize=3)
        _label(here, row.name, middle, row.ap, color, above=index % 2 == 1)
    here.set(xlim=(0, 1.25 * max(row.quartiles[2] for row in rows)))  # from 0, so that distances are ratios
    here.set(title=f"here: {device}", xlabel="ms per image (median, quartiles)", ylabel=f"AP on {dataset}")
    here.margins(y=0.25)
    for (name, points), color in zip(PAPER_RETINANET.items(), COLORS):
        paper.plot(*zip(*points), "o-", color=color, label=f"{name}, 400 to 800 pixels")
    for index, (name, point) in enumerate(PAPER_OTHERS.items()):
        paper.plot(*point, "s", color=GREY)
        _label(paper, name, *point, GREY, above=index % 2 == 1)
    paper.set(title=f"Focal Loss paper: {PAPER_DEVICE}", xlabel="ms per image", ylabel="AP on COCO test-dev")
    paper.set(xlim=(0, 220), ylim=(20, 40))
    paper.legend(loc="lower right", edgecolor="none")
    return figure


def _label(axis: Axes, text: str, x: float, y: float, color: str, above: bool) -> None:
    """Label a point; neighbours should alternate ``above``, so that their labels overlap less."""
    offset = (0, 8 if above else -15)
    axis.annotate(text, (x, y), xytext=offset, textcoords="offset points", color=color, fontsize=9, ha="center")
