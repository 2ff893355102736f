"""``retinanet-ext identify``: who of a gallery is on each image, or nobody."""

import argparse
import json
from pathlib import Path

from .embedder_arguments import (
    add_embedder_arguments,
    add_gallery_arguments,
    add_threshold_argument,
    check_threshold,
    distance_threshold,
    find_images,
    load_embedder,
    open_gallery,
    report_skipped,
)
from .usage import UsageError, usage_errors

HELP = "Names the people on images by a gallery; says unknown beyond the calibrated threshold."
UNKNOWN = "unknown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_gallery_arguments(parser)
    add_embedder_arguments(parser)
    add_threshold_argument(parser, "farther faces are unknown")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="people to list for each image (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file too")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, or folders (searched recursively)")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.inference.file_embeddings import embed_files
    from retinanet_ext.machine.atomic_file import write_atomically

    check_threshold(args)
    if args.top < 1:
        raise UsageError(f"--top is {args.top}; legal: 1 or more.")
    images, skipped = find_images(args.images)
    embedder = load_embedder(args)
    threshold = distance_threshold(args, embedder)
    gallery = open_gallery(args, embedder)
    found = embed_files(embedder, [image.path for image in images])
    skipped.update(found.skipped)
    with usage_errors():
        matches = gallery.search(found.embeddings, k=args.top)
    results = [_result(path, nearest, threshold) for path, nearest in zip(found.paths, matches)]
    _print(results, threshold)
    if args.json:
        content = {"threshold": threshold, "gallery": str(gallery.path), "model": embedder.fingerprint}
        content |= {"images": results, "skipped": {str(path): reason for path, reason in skipped.items()}}
        with usage_errors():
            write_atomically(Path(args.json), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return report_skipped(skipped)


def _result(path: Path, nearest: list, threshold: float) -> dict:
    best = nearest[0]
    return {
        "image": str(path),
        "name": best.name if best.distance <= threshold else UNKNOWN,
        "distance": best.distance,
        "nearest": [match._asdict() for match in nearest],
    }


def _print(results: list[dict], threshold: float) -> None:
    from tabulate import tabulate

    rows = []
    for result in results:
        nearest = ", ".join(f"{match['name']} {match['distance']:.3f}" for match in result["nearest"])
        rows.append([result["image"], result["name"], f"{result['distance']:.3f}", nearest])
    headers = ["image", "name", "squared distance", "nearest people"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    unknown = sum(result["name"] == UNKNOWN for result in results)
    print(f"\nthreshold {threshold:.3f}: {len(results) - unknown} known, {unknown} unknown")
