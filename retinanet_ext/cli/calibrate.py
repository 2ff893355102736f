"""``retinanet-ext calibrate``: the threshold for a false-accept rate, from the user's pairs, into the checkpoint."""

import argparse
import logging

from .usage import UsageError, usage_errors

HELP = "Find the distance up to which two faces are the same, for a false-accept rate, and store it in the checkpoint."

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the folder of a FaceNet's run, or its config"
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: as of `predict`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pairs", metavar="FILE", help="LFW's pairs.txt, or lines path,path,same")
    source.add_argument("--images", metavar="DIR", help="a folder with a folder for each identity")
    source.add_argument("--dataset", metavar="NAME", help="the pairs of a dataset of the config")
    parser.add_argument("--root", metavar="DIR", help="--pairs: folder of the images (default: that of the file)")
    parser.add_argument("--far", type=float, required=True, metavar="R", help="false-accept rate, such as 0.001")
    parser.add_argument(
        "--bound", choices=("point", "upper"), default="point",
        help="what meets the rate: that of the pairs, or the upper end of its 95 %% interval (default: point)",
    )  # fmt: skip
    parser.add_argument(
        "--miss-rate", type=float, default=0.05, metavar="R",
        help="largest share of same pairs that may be answered 'different'; between that and the threshold the answer "
        "is 'unsure' (default: 0.05)",
    )  # fmt: skip
    parser.add_argument("--groups", metavar="FILE", help="CSV lines name,group, of images or folders")
    parser.add_argument("--max-pairs", type=int, default=1_000_000, metavar="N", help="--images: of each kind")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawn pairs and the bootstrap")
    parser.add_argument("--dry-run", action="store_true", help="print only, leave the checkpoint as it is")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per forward pass (default: 32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: as of `predict`")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.checkpoint.checkpoint_entries import check_takes_entries, write_entry
    from retinanet_ext.embedding.calibration import allowed_accepts, calibrate
    from retinanet_ext.inference.embedder import CALIBRATION
    from retinanet_ext.inference.trained_model import load_embedder

    _check_arguments(args)
    with usage_errors():
        embedder = load_embedder(
            args.config_file, args.weights, device=args.device, batch_size=args.batch_size, overrides=args.opts
        )
        weights = embedder.cfg.MODEL.WEIGHTS
        if not args.dry_run:
            check_takes_entries(weights)
        pairs = _pairs(args, embedder.cfg)
        allowed_accepts(args.far, int((~pairs.same).sum()), args.bound)  # before the images are read
        groups = None if args.groups is None else pairs.groups(args.groups)
        logger.info("Embedding %d images.", len(pairs.images))
        distances = pairs.embed(embedder)
        found = calibrate(
            distances, pairs.same, args.far, miss=args.miss_rate, bound=args.bound, identities=pairs.identities,
            groups=groups, seed=args.seed, input=embedder.input, created_from=pairs.source,
        )  # fmt: skip
    _report(found, pairs, distances, embedder)
    if args.dry_run:
        print(f"not stored: --dry-run ({weights})")
        return 0
    with usage_errors():
        write_entry(weights, CALIBRATION, found.to_dict())
    print(f"stored in {weights}")
    return 0


def _check_arguments(args):
    for flag, rate in (("--far", args.far), ("--miss-rate", args.miss_rate)):
        if not 0 < rate < 1:
            raise UsageError(f"{flag} is {rate}; legal: above 0, below 1.")
    if args.root is not None and args.pairs is None:
        raise UsageError("--root is the folder of the images of --pairs, which is not given.")
    for flag, number in (("--max-pairs", args.max_pairs), ("--batch-size", args.batch_size)):
        if number < 1:
            raise UsageError(f"{flag} is {number}; legal: 1 or more.")


def _pairs(args, cfg):
    from retinanet_ext.inference.calibration_pairs import ImagePairs

    if args.pairs is not None:
        return ImagePairs.from_file(args.pairs, args.root, cfg.DATASETS.ON_MISSING_PAIR)
    if args.images is not None:
        return ImagePairs.from_folder(args.images, args.seed, args.max_pairs)
    return ImagePairs.from_dataset(cfg, args.dataset)


def _report(found, pairs, distances, embedder):
    from retinanet_ext.embedding.calibration import DIFFERENT, SAME, UNSURE, pairs_for

    left_out = f", {pairs.num_missing:,} left out, because an image is missing" if pairs.num_missing else ""
    print(f"pairs: {found.num_same:,} same, {found.num_different:,} different{left_out}; {pairs.source}")
    if embedder.faces_not_found:
        print(f"no face found in {embedder.faces_not_found} of {len(pairs.images)} images; their centre was taken")
    print(f"threshold {found.threshold:.4f}, for a false-accept rate of {found.far_target:g}")
    print(f"  FAR {found.far:.3g}; 95 % interval {_range(found.far_interval_exact)}, if pairs were independent")
    if pairs.identities is None:
        print("  pairs share images and people; whose they are is unknown here, so that the interval may be too narrow")
    else:
        print(f"  {_range(found.far_interval)} with the bootstrap over {_people(pairs)} identities; this is stored")
    print(f"  VAL {found.val:.2%}: same pairs that are accepted")
    print(f"  a FAR of {found.far_target:g} takes {pairs_for(found.far_target):,} different pairs (rule of three)")
    low, high = found.unsure
    print(f"unsure above {low:.4f} up to {high:.4f}: at most {found.miss_target:.3g} of same pairs lie beyond")
    answers = [[found.answer(distance) for distance in distances[pairs.same == kind]] for kind in (True, False)]
    for kind, given in zip(("same pairs", "different pairs"), answers):
        shares = ", ".join(f"{given.count(answer) / len(given):.2%} {answer}" for answer in (SAME, UNSURE, DIFFERENT))
        print(f"  answers to {kind}: {shares}")
    for name, group in found.groups.items():
        print(f"group {name}: {_group(group)}")


def _people(pairs):
    return len(set(pairs.identities.ravel().tolist()))


def _group(group):
    rates = [f"{group['num_same']:,} same, {group['num_different']:,} different pairs"]
    if group["far"] is not None:
        rates.append(f"FAR {group['far']:.3g} ({_range(group['far_interval'])})")
    if group["val"] is not None:
        rates.append(f"VAL {group['val']:.2%}")
    own = group["threshold"]
    rates.append("too few pairs for a threshold of its own" if own is None else f"threshold of its own {own:.4f}")
    return ", ".join(rates)


def _range(interval):
    return f"{interval[0]:.3g} to {interval[1]:.3g}"
