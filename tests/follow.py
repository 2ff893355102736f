"""Lists the files that a reader visits when following one training step, or one image, through the code.

    python -m tests.follow                          # lite
    RETINANET_EXT_ENGINE=detectron2 python -m tests.follow

trains a tiny model for three iterations and watches every call of the second one. The path of a step begins with the
calls on the stack, from ``train_net.py`` on, and ends when the hooks after the step have run. It leaves out the data
loader, the model's forward pass and the backward pass. The path of an image begins where its batch is drawn from the
data loader and ends with the model's losses.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import retinanet_ext
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import ENGINE, default_argument_parser
from retinanet_ext.data.generated_shapes import write_shapes
from retinanet_ext.detection import FocalRetinaNet
from retinanet_ext.training.launch import launch
from retinanet_ext.training.launch import main as train

ROOT = Path(retinanet_ext.__file__).resolve().parents[1]
# The published config for COCO, with frozen norms and smooth L1; only smaller, to run in seconds.
CONFIG = "configs/detection/retinanet_R_50_FPN_1x.yaml"
SMALL = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "16"]
SMALL += ["MODEL.RETINANET.NUM_CONVS", "1", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
SMALL += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3"]
SMALL += ["SOLVER.BASE_LR", "1e-4", "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "DATASETS.TEST", "()"]

Visit = tuple[str, str]
"""File, relative to the root of its project, and name of a function."""


class Trail(NamedTuple):
    """Files in the order of first visits, functions, and ``hops``: how many calls led from one file to another."""

    step: dict[str, None]
    image: dict[str, None]
    hops: int
    functions: set[Visit]


class _Watch:
    """A profile function for `sys.setprofile`. Where parts are nested, only the outermost one counts."""

    def __init__(self) -> None:
        # Here the script's two calls are made by `follow_training`.
        self.step, self.image, self.functions = {"train_net.py": None}, {}, set()
        self.hops = 0
        self._iteration, self._in_step = 0, False
        self._part: str | None = None
        self._depth = 0

    def __call__(self, frame, event: str, argument) -> None:
        if event == "call":
            self._call(frame)
        elif event == "return":
            self._return(frame)

    def _call(self, frame) -> None:
        file = project_file(frame.f_code.co_filename)
        if _is_trainer_method(frame, "before_step"):
            self._iteration += 1
            self._in_step = self._iteration == 2
            if self._in_step:
                self._visit_stack(frame.f_back)
        if not self._in_step:
            return
        if self._part is not None:
            self._depth += 1
        else:
            self._part = _part_that_begins(frame)
        if file is None:
            return
        self.functions.add((file, frame.f_code.co_name))
        if self._part in ("loader", "model"):
            self.image.setdefault(file)
        elif self._part is None:
            self.step.setdefault(file)
            caller = project_file(frame.f_back.f_code.co_filename)
            self.hops += caller is not None and caller != file

    def _return(self, frame) -> None:
        if self._part is not None:
            if self._depth == 0:
                self._part = None
            else:
                self._depth -= 1
        if self._in_step and _is_trainer_method(frame, "after_step"):
            self._in_step = False

    def _visit_stack(self, frame) -> None:
        files = []
        while frame is not None:
            files.append(project_file(frame.f_code.co_filename))
            frame = frame.f_back
        for file in reversed(files):
            if file is not None and not file.startswith("tests"):
                self.step.setdefault(file)


def _part_that_begins(frame) -> str | None:
    if _is(frame, "__next__", "torch/utils/data/dataloader.py"):
        return "loader"
    if frame.f_code is FocalRetinaNet.forward.__code__:
        return "model"
    return "backward" if _is(frame, "backward", "torch/autograd/__init__.py") else None


def _is_trainer_method(frame, name: str) -> bool:
    """Whether a trainer's method `name` runs. Hooks have methods of the same names, but no ``run_step``."""
    return _is(frame, name, "engine/train_loop.py") and hasattr(frame.f_locals["self"], "run_step")


def _is(frame, name: str, file: str) -> bool:
    return frame.f_code.co_name == name and frame.f_code.co_filename.endswith(file)


def project_file(path: str) -> str | None:
    """The path below the root of this project or of Detectron2; None for all other files."""
    parts = Path(path).parts
    if "detectron2" in parts:
        return "/".join(parts[parts.index("detectron2") :])
    if "site-packages" in parts or not path.startswith(str(ROOT)):
        return None
    return Path(path).relative_to(ROOT).as_posix()


def follow_training(folder: Path, config: str = CONFIG, *opts: str) -> Trail:
    """Train on generated shapes in ``folder`` for three iterations, and watch the second."""
    write_shapes(folder / "shapes", num_train=12, num_val=1, seed=0, image_size=96)
    annotations, images = folder / "shapes" / "annotations" / "shapes_train.json", folder / "shapes" / "train"
    name = f"followed_{folder.name}"
    custom = [{"NAME": name, "FORMAT": "coco", "JSON": str(annotations), "IMAGES": str(images)}]
    data = ["DATASETS.CUSTOM", str(custom), "DATASETS.TRAIN", str((name,)), "OUTPUT_DIR", str(folder / "run")]
    # Training starts only if the frozen layers come from a checkpoint; random weights will do here.
    classes = ["MODEL.RETINANET.NUM_CLASSES", "5"]
    model = FocalRetinaNet(load_config(str(ROOT / config), [*SMALL, *classes, *opts], datasets=False))
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    weights = ["MODEL.WEIGHTS", str(folder / "weights.pth")]
    words = ["--config-file", str(ROOT / config), *SMALL, *data, *opts, *weights]
    watch = _Watch()
    _watched(watch, lambda: launch(train, default_argument_parser().parse_args(words)))
    return Trail(watch.step, watch.image, watch.hops, watch.functions)


def follow_inference() -> set[Visit]:
    """The functions of this project that run when a model detects something in an image."""
    cfg = load_config(str(ROOT / CONFIG), SMALL, datasets=False)
    model = FocalRetinaNet(cfg).eval()
    model.test_score_thresh = 0.0
    functions = set()

    def watch(frame, event, argument):
        file = project_file(frame.f_code.co_filename)
        if event == "call" and file is not None:
            functions.add((file, frame.f_code.co_name))

    _watched(watch, lambda: model([{"image": torch.zeros(3, 96, 96, dtype=torch.uint8)}]))
    return functions


def _watched(watch: Callable, function: Callable[[], object]) -> None:
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(before)


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the log of the training
        trail = follow_training(Path(folder))
    for title, files in (("One training step", trail.step), ("One image, from its record to the losses", trail.image)):
        print(f"\n{title}, on {ENGINE}: {len(files)} files")
        print("\n".join(f"  {file}" for file in files))
    print(f"\nCalls of the step that lead from one file to another: {trail.hops}")


if __name__ == "__main__":
    main()
