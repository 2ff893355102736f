"""``retinanet-ext cluster``: groups the faces of a folder by person."""

import argparse
import json
import shutil
from pathlib import Path

from .embedder_arguments import (
    add_embedder_arguments,
    add_threshold_argument,
    check_threshold,
    distance_threshold,
    find_images,
    load_embedder,
    report_skipped,
)
from .usage import UsageError, usage_errors

HELP = "Groups images of faces by person; writes the groups and a contact sheet."
RESULTS, GROUPS, SHEET = "clusters.json", "groups", "contact_sheet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_embedder_arguments(parser)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="images, or folders (searched recursively)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the groups and the contact sheet")
    add_threshold_argument(parser, "clusters at most this far apart are merged")
    parser.add_argument(
        "--linkage", choices=("average", "complete", "single"), default="average",
        help="distance of two clusters: mean over all pairs (default), largest, smallest",
    )  # fmt: skip
    parser.add_argument("--copy", action="store_true", help="copy the images into a folder for each group")
    parser.add_argument(
        "--labelled", action="store_true", help="the folder of each image is its identity: score the clustering"
    )


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.embedding.clustering import cluster, clustering_scores
    from retinanet_ext.inference.file_embeddings import embed_files

    check_threshold(args)
    output = Path(args.output)
    if (output / GROUPS).exists():
        raise UsageError(f"{output / GROUPS} exists, from an earlier run; remove it, or choose another --output.")
    images, skipped = find_images(args.input, output)
    embedder = load_embedder(args)
    threshold = distance_threshold(args, embedder)
    with usage_errors():
        output.mkdir(parents=True, exist_ok=True)
    found = embed_files(embedder, [image.path for image in images])
    skipped.update(found.skipped)
    sources = [image for image in images if image.path not in skipped]
    with usage_errors():
        labels = cluster(found.embeddings, threshold, args.linkage)
    scores = None
    if args.labelled and sources:
        scores = clustering_scores(labels, [source.path.parent.name for source in sources]).as_dict()
    groups = _largest_first(sources, labels)
    settings = {"threshold": threshold, "linkage": args.linkage, "model": embedder.fingerprint, "scores": scores}
    _write(output, groups, settings, skipped)
    _write_groups(output / GROUPS, groups, args.copy)
    _write_sheets(output, groups)
    _report(groups, scores, output)
    return report_skipped(skipped)


def _largest_first(sources: list, labels) -> list[list]:
    groups: dict[int, list] = {}
    for source, label in zip(sources, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(source)
    return sorted(groups.values(), key=len, reverse=True)


def _write(output: Path, groups: list[list], settings: dict, skipped: dict) -> None:
    from retinanet_ext.machine.atomic_file import write_atomically

    clusters = [
        {"cluster": number, "images": [str(source.path) for source in group]} for number, group in enumerate(groups, 1)
    ]
    content = {**settings, "clusters": clusters, "skipped": {str(path): reason for path, reason in skipped.items()}}
    write_atomically(output / RESULTS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _write_groups(folder: Path, groups: list[list], copy: bool) -> None:
    """A list of files for each group, or a folder of copies."""
    folder.mkdir()
    for number, group in enumerate(groups, 1):
        if not copy:
            (folder / f"{number:04}.txt").write_text("".join(f"{source.path}\n" for source in group))
            continue
        for source in group:
            target = folder / f"{number:04}" / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path, target)


def _write_sheets(output: Path, groups: list[list]) -> None:
    """Pages of rows; images that are alone share the last rows."""
    from retinanet_ext.embedding.contact_sheet import SheetRow, contact_sheets

    columns = 12
    rows = [
        SheetRow(f"cluster {number}", [source.path for source in group], f"{len(group)} images")
        for number, group in enumerate(groups, 1)
        if len(group) > 1
    ]
    alone = [group[0].path for group in groups if len(group) == 1]
    together = len(rows)
    for start in range(0, len(alone), columns):
        shown = alone[start : start + columns]
        first = together + start + 1
        rows.append(SheetRow(f"clusters {first}-{first + len(shown) - 1}", shown, "1 image each"))
    for old in output.glob(f"{SHEET}*.jpg"):
        old.unlink()
    for number, page in enumerate(contact_sheets(rows, columns), 1):
        page.save(output / (f"{SHEET}.jpg" if number == 1 else f"{SHEET}_{number}.jpg"), quality=90)


def _report(groups: list[list], scores: dict | None, output: Path) -> None:
    alone = sum(len(group) == 1 for group in groups)
    images = sum(map(len, groups))
    print(f"{images} images in {len(groups)} clusters, {alone} of them with one image; results in {output}")
    if scores is not None:
        for kind in ("bcubed", "pairwise"):
            figures = (100 * scores[f"{kind}_{part}"] for part in ("precision", "recall", "f1"))
            print("{}: precision {:.1f} %, recall {:.1f} %, F1 {:.1f} %".format(kind, *figures))
