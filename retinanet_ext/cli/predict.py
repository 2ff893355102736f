"""``retinanet-ext predict``: detect objects in images, folders and videos."""

import argparse
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from PIL import Image
from tqdm import tqdm

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Visualizer, detection_utils
from retinanet_ext.data.doctor.image_probe import IMAGE_ERRORS
from retinanet_ext.inference.predictor import BatchPredictor
from retinanet_ext.inference.threaded_map import map_ahead

from .predict_files import RESULTS_FILE, CocoResults, Source, find_sources
from .usage import UsageError, usage_errors

HELP = "Detect objects in images, folders and videos; writes annotated pictures and COCO-format JSON."
_WEIGHT_FILES = ("model_best.pth", "model_final.pth")
_DEFAULT_FPS = 25.0
_DEFAULT_SCORE_THRESHOLD = 0.5
_SCORE_KEY, _DEVICE_KEY = "MODEL.RETINANET.SCORE_THRESH_TEST", "MODEL.DEVICE"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config, ideally the config.yaml of a run")
    parser.add_argument(
        "--weights", metavar="FILE",
        help="checkpoint; default: MODEL.WEIGHTS if given among the overrides, else model_best.pth or "
        "model_final.pth beside the config file or in its OUTPUT_DIR, else the config's MODEL.WEIGHTS",
    )  # fmt: skip
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="images, videos, or folders (searched recursively)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and JSON")
    parser.add_argument(
        "--score-threshold", type=float, metavar="S",
        help=f"0 to 1; default: {_SCORE_KEY} if given among the overrides, else {_DEFAULT_SCORE_THRESHOLD}",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images per forward pass (default: 4)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"),
        help=f"auto: CUDA if available; default: {_DEVICE_KEY} if given among the overrides, else auto",
    )  # fmt: skip
    parser.add_argument("--no-pictures", action="store_true", help="write JSON only")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config overrides; directly after --input, put -- before them"
    )


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    sources, skipped = find_sources(args.input, output)
    _check_arguments(args, output, sources)
    with usage_errors():
        predictor, class_names = _build_predictor(args)
        output.mkdir(parents=True, exist_ok=True)
    job = _Job(predictor, class_names, output, pictures=not args.no_pictures)
    for path, reason in skipped.items():
        job.skip(path, reason)
    images = [source for source in sources if not source.is_video]
    if images:
        job.run_images(images)
    for source in sources:
        if source.is_video:
            job.run_video(source)
    logger.info("%d detections in %d images and frames; results in %s.", job.detections, job.done, output)
    if job.skipped:
        lines = "\n".join(f"  {path}: {reason}" for path, reason in job.skipped.items())
        logger.warning("Skipped %d of the inputs:\n%s", len(job.skipped), lines)
    return 1 if job.skipped else 0


def _check_arguments(args, output, sources):
    if args.score_threshold is not None and not 0.0 <= args.score_threshold <= 1.0:
        raise UsageError(f"--score-threshold is {args.score_threshold}; legal: 0 to 1.")
    if args.batch_size < 1:
        raise UsageError(f"--batch-size is {args.batch_size}; legal: 1 or more.")
    inputs = {source.path.resolve() for source in sources}
    clash = next((s for s in sources if s.picture(output).resolve() in inputs), None)
    if clash is not None and not args.no_pictures:
        raise UsageError(f"The picture of {clash.path} would overwrite an input; choose another folder for --output.")


def _build_predictor(args):
    """(BatchPredictor, class names), from the arguments and the config."""
    cfg = _load_config(args)
    _set_device(cfg, args)
    cfg.MODEL.WEIGHTS = _weights(args, cfg)
    if args.score_threshold is not None:
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.score_threshold
    elif _SCORE_KEY not in args.opts[::2]:
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = _DEFAULT_SCORE_THRESHOLD
    class_names = _class_names(cfg)
    cfg.freeze()
    logger.info("Weights: %s; device: %s; classes: %s.", cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, ", ".join(class_names))
    return BatchPredictor(cfg, batch_size=args.batch_size), class_names


def _set_device(cfg, args):
    if args.device in ("cpu", "cuda"):
        cfg.MODEL.DEVICE = args.device
    elif args.device == "auto" or _DEVICE_KEY not in args.opts[::2]:
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"The device is {cfg.MODEL.DEVICE}, but PyTorch finds no CUDA device here; use --device cpu.")


def _load_config(args):
    cfg = load_config(args.config_file, args.opts, datasets=False)
    if cfg.MODEL.CLASS_NAMES:
        return cfg
    # Only the config of a run holds the class names; otherwise the training data have them.
    try:
        return load_config(args.config_file, args.opts)
    except OSError as error:
        logger.warning("The training data cannot be read, so classes have numbers instead of names. %s", error)
        return cfg


def _weights(args, cfg):
    """The checkpoint to use. The config's MODEL.WEIGHTS comes last: for a run, training started from these weights."""
    folders = [Path(args.config_file).parent, Path(cfg.OUTPUT_DIR)]
    found = [str(folder / name) for folder in folders for name in _WEIGHT_FILES if (folder / name).is_file()]
    if args.weights or "MODEL.WEIGHTS" in args.opts[::2]:
        path = args.weights or cfg.MODEL.WEIGHTS
    else:
        path = found[0] if found else cfg.MODEL.WEIGHTS
    if not path:
        raise UsageError(f"No {' or '.join(_WEIGHT_FILES)} in {folders[0]} or {folders[1]}; give --weights FILE.")
    if "://" not in path and not Path(path).is_file():
        raise UsageError(f"The weights {path} do not exist.")
    return path


def _class_names(cfg):
    count = cfg.MODEL.RETINANET.NUM_CLASSES
    names = list(cfg.MODEL.CLASS_NAMES) or [f"class {k}" for k in range(count)]
    if len(names) != count:
        raise UsageError(
            f"MODEL.RETINANET.NUM_CLASSES is {count}, but MODEL.CLASS_NAMES has {len(names)}: {', '.join(names)}. "
            "Use the config.yaml that the training run wrote to its output folder."
        )
    return names


class _Job:
    """One run over all inputs: predicts, draws, collects results and skipped inputs."""

    def __init__(self, predictor: BatchPredictor, class_names: Sequence[str], output: Path, pictures: bool) -> None:
        self.predictor = predictor
        self.class_names = class_names
        self.output = output
        self.pictures = pictures
        self.skipped = {}
        self.detections = 0
        self.done = 0

    def skip(self, path: Path, reason: str) -> None:
        logger.warning("Skipped %s: %s", path, reason)
        self.skipped[path] = reason

    def run_images(self, sources: Sequence[Source]) -> None:
        results = CocoResults(self.class_names)
        waiting = deque()

        def readable(bar):
            for source, image in map_ahead(self._read, sources):
                if isinstance(image, Exception):
                    self.skip(source.path, f"{type(image).__name__}: {image}")
                    bar.update()
                else:
                    waiting.append((source, image))
                    yield image

        with _progress(len(sources), "image") as bar:
            for instances in self.predictor.predict(readable(bar)):
                source, image = waiting.popleft()
                self._count(results, str(source.path), instances)
                if self.pictures:
                    picture = source.picture(self.output)
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    drawn = self._draw(image, instances)
                    Image.fromarray(drawn[:, :, ::-1]).save(picture, quality=95)
                bar.update()
        results.save(self.output / RESULTS_FILE)

    def run_video(self, source: Source) -> None:
        capture = cv2.VideoCapture(str(source.path))
        fps = capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
        expected = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        results = CocoResults(self.class_names)
        waiting, writer = deque(), None
        refusal = "no frame of this video can be decoded"

        def frames():
            nonlocal refusal
            while True:
                success, frame = capture.read()
                if not success:
                    return
                try:
                    self.predictor.check_image(frame)
                except ValueError as error:
                    refusal = str(error)
                    return
                waiting.append(frame)
                yield frame

        with _progress(expected, "frame") as bar:
            for number, instances in enumerate(self.predictor.predict(frames())):
                image = waiting.popleft()
                self._count(results, str(source.path), instances, frame=number)
                if self.pictures:
                    writer = writer or _video_writer(source.picture(self.output), fps, image.shape)
                    writer.write(self._draw(image, instances))
                bar.update()
        capture.release()
        if writer is not None:
            writer.release()
        count = len(results.content["images"])
        if count == 0:
            self.skip(source.path, refusal)
            return
        if count < expected:
            logger.warning("%s: %d of %d frames could be decoded.", source.path, count, expected)
        results.save(source.results(self.output))

    def _read(self, source):
        """(source, uint8 BGR image ``(H, W, 3)`` after its EXIF rotation), or (source, error)."""
        try:
            image = detection_utils.read_image(str(source.path), format="BGR")
            self.predictor.check_image(image)
        except (*IMAGE_ERRORS, ValueError) as error:
            return source, error
        return source, image

    def _count(self, results, file_name, instances, **fields):
        results.add(file_name, instances, **fields)
        self.done += 1
        self.detections += len(instances)

    def _draw(self, image, instances):
        """The BGR image with boxes, class names and scores."""
        canvas = Visualizer(image[:, :, ::-1], {"thing_classes": self.class_names})
        return canvas.draw_instance_predictions(instances).get_image()[:, :, ::-1]


def _progress(total, unit):
    """A progress bar on stderr, only if that is a terminal."""
    return tqdm(total=total or None, unit=unit, disable=None)


def _video_writer(path, fps, shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (shape[1], shape[0]))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write the video {path}; is the folder writable, does OpenCV have FFmpeg?")
    return writer
