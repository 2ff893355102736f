"""``retinanet-ext gallery``: add, remove, rename and list known people."""

import argparse
import logging
from pathlib import Path

from .embedder_arguments import (
    add_embedder_arguments,
    add_gallery_arguments,
    find_images,
    load_embedder,
    open_gallery,
    report_skipped,
)
from .usage import UsageError, usage_errors

HELP = "Adds, removes, renames and lists the known people of a gallery."

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="add photos of a person, or of many; makes the gallery if it is missing")
    add_gallery_arguments(add)
    add_embedder_arguments(add)
    add.add_argument("--name", help="the person on all of the photos")
    add.add_argument("--images", metavar="FOLDER", help="a folder with one folder of photos for each person")
    add.add_argument("--float", action="store_true", help="a new gallery stores float32 instead of one byte a number")
    add.add_argument("photos", nargs="*", metavar="PHOTO", help="images, or folders (searched recursively)")
    for action, text in (("remove", "remove a person with all photos"), ("rename", "give a person another name")):
        edit = actions.add_parser(action, help=text)
        edit.add_argument("--gallery", required=True, metavar="FILE")
        edit.add_argument("--name", required=True, help="the person")
        if action == "rename":
            edit.add_argument("--to", required=True, metavar="NAME", help="the new name")
    show = actions.add_parser("list", help="list the people, and the models that made the embeddings")
    show.add_argument("--gallery", required=True, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    if args.action == "add":
        return _add(args)
    from retinanet_ext.embedding.gallery import Gallery

    with usage_errors():
        gallery = Gallery(args.gallery)
        if args.action == "remove":
            logger.info("Removed %s with %d photos.", args.name, gallery.remove(args.name))
        elif args.action == "rename":
            gallery.rename(args.name, args.to)
            logger.info("%s is now %s.", args.name, args.to)
        else:
            _list(gallery)
    return 0


def _add(args: argparse.Namespace) -> int:
    from retinanet_ext.inference.file_embeddings import embed_files

    people, skipped = _people(args)
    embedder = load_embedder(args)
    # An existing gallery keeps how it stores embeddings.
    gallery = open_gallery(args, embedder, create=True, codes=False if args.float else None)
    for name, paths in people.items():
        found = embed_files(embedder, paths)
        skipped.update(found.skipped)
        with usage_errors():
            added = gallery.add(name, found.embeddings, [str(path.resolve()) for path in found.paths])
        replaced = f", {added.replaced} replaced" if added.replaced else ""
        logger.info("%s: %d photos added%s.", name, added.new, replaced)
    logger.info("%s holds %d photos of %d people.", gallery.path, len(gallery), len(gallery.names()))
    return report_skipped(skipped)


def _people(args: argparse.Namespace) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Name -> photos; and path -> reason, for what gives none."""
    if args.images is None:
        if not args.name or not args.photos:
            raise UsageError("Give --name NAME and photos, or --images FOLDER with one folder for each person.")
        images, skipped = find_images(args.photos)
        return {args.name: [image.path for image in images]}, skipped
    if args.name or args.photos:
        raise UsageError("Give either --images FOLDER, or --name NAME and photos.")
    folder = Path(args.images)
    if not folder.is_dir():
        raise UsageError(f"--images: there is no folder {folder}.")
    people, skipped = {}, {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            try:
                images, problems = find_images([path])
            except UsageError:
                images, problems = [], {path: "no images in this folder"}
            skipped.update(problems)
            if images:
                people[path.name] = [image.path for image in images]
        else:
            skipped[path] = "not in the folder of a person"
    if not people:
        raise UsageError(f"--images: {folder} has no folder with images; expected: one for each person.")
    return people, skipped


def _list(gallery) -> None:
    from tabulate import tabulate

    print(tabulate(gallery.names().items(), headers=["name", "photos"], tablefmt="github", disable_numparse=True))
    stored = "one byte" if gallery.is_codes else "float32"
    print(f"\n{len(gallery)} photos; {gallery.dim} numbers each, as {stored}")
    for fingerprint, description in gallery.models().items():
        print(f"model {fingerprint}: {description}")
