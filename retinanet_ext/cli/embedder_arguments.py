"""What the verbs that embed faces share: the model's flags, the images, the threshold."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from .usage import UsageError, usage_errors

logger = logging.getLogger(__name__)

LARGEST_BATCH_OF_PHOTOS = 4
LARGEST_DISTANCE = 4.0  # squared L2, of two embeddings of length 1


def add_embedder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the folder of a FaceNet run, or its config"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint; default: as for `retinanet-ext predict`, the best of the run"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per forward pass (default: 32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="auto: CUDA if available (default)")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")


def add_threshold_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--threshold", type=float, metavar="D",
        help=f"{what}: squared distance, 0 to 4; default: the calibrated one of the checkpoint",
    )  # fmt: skip


def load_embedder(args: argparse.Namespace):
    """The ``Embedder`` that the flags describe; for a detector with embeddings an ``ObjectEmbedder``."""
    from retinanet_ext.inference import trained_model
    from retinanet_ext.inference.object_embedder import ObjectEmbedder
    from retinanet_ext.inference.predictor import Predictor

    if args.batch_size < 1:
        raise UsageError(f"--batch-size is {args.batch_size}; legal: 1 or more.")
    with usage_errors():
        embedder = trained_model.load(
            args.config_file, args.weights, device=args.device, batch_size=args.batch_size, overrides=args.opts
        )
    if getattr(embedder, "fingerprint", None) is None:
        raise UsageError(
            f"{args.config_file} is no FaceNet, and no detector with MODEL.EMBEDDING_ON: its model gives no embeddings."
        )
    if not isinstance(embedder, Predictor):
        return embedder
    # Photos, which are larger than crops of faces.
    embedder.batch_size = min(embedder.batch_size, LARGEST_BATCH_OF_PHOTOS)
    return ObjectEmbedder(embedder)


def check_threshold(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0.0 <= args.threshold <= LARGEST_DISTANCE:
        raise UsageError(f"--threshold is {args.threshold}; legal: 0 to 4, a squared distance.")


def distance_threshold(args: argparse.Namespace, embedder) -> float:
    """``--threshold``, else that of the checkpoint."""
    if args.threshold is not None:
        return args.threshold
    if embedder.calibration is None:
        raise UsageError(
            f"The checkpoint {embedder.cfg.MODEL.WEIGHTS} has no calibrated threshold. Calibrate it on your images:\n"
            f"  retinanet-ext calibrate --config-file {args.config_file} --images FOLDER --far 0.001\n"
            "or name a threshold: --threshold D"
        )
    return float(embedder.calibration.threshold)


def open_gallery(args: argparse.Namespace, embedder, **more):
    """The gallery of ``--gallery`` for this model; warns if its faces were cropped otherwise."""
    from retinanet_ext.embedding.gallery import Gallery

    weights, crop = str(embedder.cfg.MODEL.WEIGHTS), str(embedder.input)
    with usage_errors():
        gallery = Gallery(
            args.gallery, fingerprint=embedder.fingerprint, dim=embedder.dim, description=f"{weights}, crop {crop}",
            compatible=[*args.compatible, *embedder.compatible_with], **more,
        )  # fmt: skip
        before = gallery.models().get(embedder.fingerprint, "").partition(", crop ")[2]
    if before and before != crop:
        logger.warning(
            "The faces of the gallery %s were cropped by %s, and now by %s. Their distances mean little: use the same "
            "INPUT keys, or make the gallery again.",
            gallery.path, before, crop,
        )  # fmt: skip
    return gallery


def add_gallery_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gallery", required=True, metavar="FILE", help="the file with the known faces")
    parser.add_argument(
        "--compatible", nargs="+", default=[], metavar="FINGERPRINT",
        help="models of the gallery whose embeddings may be compared with this model's, besides those that its "
        "checkpoint names (harmonic embeddings)",
    )  # fmt: skip


def find_images(paths: Sequence[str], output: Path | None = None):
    """The images among the paths and below the folders; see ``find_sources``.

    Args:
        paths: files and folders.
        output: folder of the results, which is not searched.

    Returns:
        Sources, and path -> reason for each path that gives none.
    """
    from retinanet_ext.inference.sources import find_sources

    sources, skipped = find_sources(paths, output)
    skipped.update({source.path: "a video; only images are embedded" for source in sources if source.is_video})
    images = [source for source in sources if not source.is_video]
    if not images:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped.items())
        raise UsageError(f"There are no images to embed. {reasons}")
    return images, skipped


def report_skipped(skipped: dict) -> int:
    """Name what was left out; returns the exit code."""
    if skipped:
        lines = "\n".join(f"  {path}: {reason}" for path, reason in skipped.items())
        logger.warning("Skipped %d of the inputs:\n%s", len(skipped), lines)
    return 1 if skipped else 0
