"""``retinanet-ext predict``: detect objects in images, folders and videos."""

import argparse
import logging
from pathlib import Path

from .usage import UsageError, usage_errors

HELP = "Detect objects in images, folders and videos; writes annotated pictures and COCO-format JSON."

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the folder of a run, or a config, ideally that of a run"
    )
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
        help="0 to 1; default: the SCORE_THRESH_TEST of the model if given among the overrides, else 0.5",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds", metavar="T",
        help="a score threshold for each class: `model`, those that the run stored in the checkpoint (best F1), a JSON "
        "file (operating_thresholds.json of an evaluation, or {name: score}), or one number; --score-threshold stays "
        "the lower bound",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images per forward pass (default: 4)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"),
        help="auto: CUDA if available; default: MODEL.DEVICE if given among the overrides, else auto",
    )  # fmt: skip
    parser.add_argument(
        "--identify", metavar="GALLERY", help="name the objects by this gallery; the model needs MODEL.EMBEDDING_ON"
    )
    parser.add_argument(
        "--identify-threshold", type=float, metavar="D",
        help="objects farther than this squared distance (0 to 4) from everyone are \"unknown\"; default: the "
        "threshold that the checkpoint was calibrated to",
    )  # fmt: skip
    parser.add_argument("--embeddings", action="store_true", help="write the embeddings into the JSON too")
    parser.add_argument("--no-pictures", action="store_true", help="write JSON only")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config overrides; directly after --input, put -- before them"
    )


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.inference.embedder import Embedder
    from retinanet_ext.inference.file_predictions import FilePredictions
    from retinanet_ext.inference.sources import find_sources
    from retinanet_ext.inference.trained_model import load

    output = Path(args.output)
    sources, skipped = find_sources(args.input, output)
    _check_arguments(args, output, sources)
    with usage_errors():
        predictor = load(
            args.config_file, args.weights, score_threshold=args.score_threshold, device=args.device,
            batch_size=args.batch_size, overrides=args.opts, thresholds=_thresholds(args.thresholds),
        )  # fmt: skip
        if isinstance(predictor, Embedder):
            raise UsageError(f"{args.config_file} is a FaceNet, which detects nothing; it has the verb `verify`.")
        identify = _identifier(predictor, args)
        output.mkdir(parents=True, exist_ok=True)
    job = FilePredictions(
        predictor, output, pictures=not args.no_pictures, identify=identify, embeddings=args.embeddings
    )
    for path, reason in skipped.items():
        job.skip(path, reason)
    images = [source for source in sources if not source.is_video]
    if images:
        job.run_images(images)
    for source in sources:
        if source.is_video:
            job.run_video(source)
    _report(job)
    return 1 if job.skipped else 0


def _identifier(predictor, args):
    """What names the detections; None without --identify.

    Raises:
        ValueError: the model has no embeddings, or there is no threshold, or the gallery does not fit.
    """
    from retinanet_ext.inference.identification import Identifier, check_has_embeddings

    if args.embeddings:
        check_has_embeddings(predictor)
    return Identifier.open(predictor, args.identify, args.identify_threshold) if args.identify else None


def _thresholds(text):
    """A number if the text is one, else the text: `model`, or the path of a file."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _check_arguments(args, output, sources):
    if args.score_threshold is not None and not 0.0 <= args.score_threshold <= 1.0:
        raise UsageError(f"--score-threshold is {args.score_threshold}; legal: 0 to 1.")
    if args.identify_threshold is not None and not (args.identify and 0.0 <= args.identify_threshold <= 4.0):
        raise UsageError(
            f"--identify-threshold is {args.identify_threshold}; legal: 0 to 4, together with --identify GALLERY."
        )
    if args.batch_size < 1:
        raise UsageError(f"--batch-size is {args.batch_size}; legal: 1 or more.")
    inputs = {source.path.resolve() for source in sources}
    clash = next((s for s in sources if s.picture(output).resolve() in inputs), None)
    if clash is not None and not args.no_pictures:
        raise UsageError(f"The picture of {clash.path} would overwrite an input; choose another folder for --output.")


def _report(job) -> None:
    logger.info("%d detections in %d images and frames; results in %s.", job.detections, job.done, job.output)
    threshold = job.score_threshold()
    if job.done and not job.detections and threshold is not None:
        best, count = job.best_score()
        logger.warning(
            "Nothing scores %g or more. The best score in the first %d images is %.3g: choose a --score-threshold "
            "below it, or train longer.",
            threshold, count, best,
        )  # fmt: skip
    if job.skipped:
        lines = "\n".join(f"  {path}: {reason}" for path, reason in job.skipped.items())
        logger.warning("Skipped %d of the inputs:\n%s", len(job.skipped), lines)
