"""Loaders of identity data, for training and evaluation of FaceNet."""

import itertools
import logging
from collections import Counter

from retinanet_ext.d2 import (
    CfgNode,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
)
from retinanet_ext.data.checked_mapper import CheckedMapper
from retinanet_ext.data.face_boxes import with_face_boxes
from retinanet_ext.data.identity_datasets import load_identity_dicts, training_identities
from retinanet_ext.data.identity_mapper import IdentityMapper
from retinanet_ext.data.identity_sampler import IdentityBatchSampler
from retinanet_ext.data.record_store import RecordStore
from retinanet_ext.data.replacing_mapper import ReplacingMapper, same_identity
from retinanet_ext.embedding.pairs import match_pairs, registered_pairs
from retinanet_ext.inference.run_face_detector import face_input

from .bad_images import ReportingLoader

logger = logging.getLogger(__name__)


def identity_train_loader(cfg: CfgNode):
    """The loader for training: batches of DATALOADER.IMAGES_PER_IDENTITY images of each identity, or if that is 0 in
    the order of DATALOADER.SAMPLER_TRAIN.

    Raises:
        ValueError: the batch cannot be made from the data, or the data are at fault.
    """
    dicts = load_identity_dicts(cfg, cfg.DATASETS.TRAIN, training=True)
    _report_sizes(dicts, training_identities(cfg))
    faces = face_input(cfg)
    dicts = with_face_boxes(dicts, faces, cfg.INPUT.FACE.DETECTOR)
    records = RecordStore(dicts)
    mapper = IdentityMapper.from_config(cfg, faces.without_detector(), True)
    mapper = ReplacingMapper(mapper, records, alike=same_identity)
    cfg = cfg.clone()
    cfg.defrost()
    # All images have one size, and batches of one orientation would take the identities apart.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    if cfg.DATALOADER.IMAGES_PER_IDENTITY == 0:
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=records)
    else:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        sampler = IdentityBatchSampler.from_config(cfg, dicts, seed)
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=records, sampler=sampler)
        if hasattr(loader, "seed"):
            # With equal seeds, a resumed run gives the sampler the seed of the loader's checkpoint.
            sampler.seed = loader.seed
    loader.num_images = len(dicts)
    return ReportingLoader(loader)


def identity_test_loader(cfg: CfgNode, dataset_name: str):
    """The loader of a dataset for evaluation: each image once, one at a time, in the order of the records."""
    faces = face_input(cfg)
    dicts = load_identity_dicts(cfg, [dataset_name], training=False)
    dicts = with_face_boxes(dicts, faces, cfg.INPUT.FACE.DETECTOR)
    mapper = CheckedMapper(IdentityMapper.from_config(cfg, faces.without_detector(), False))
    return build_detection_test_loader(dataset=dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


def check_pairs(cfg: CfgNode, dataset_name: str) -> None:
    """Read or draw the pairs of a dataset, and find their images.

    Raises:
        ValueError: DATASETS.ON_MISSING_PAIR is "error" and the checked dataset lacks an image, or the pairs cannot be
            read or drawn.
    """
    pairs = registered_pairs(dataset_name)
    if pairs is None:
        return
    records = load_identity_dicts(cfg, [dataset_name], training=False)
    ids = [record["image_id"] for record in records]
    matched = match_pairs(pairs, ids, cfg.DATASETS.ON_MISSING_PAIR, dataset_name)
    logger.info(
        "Dataset %r: %d pairs (%d same) in %d folds, %d left out because an image is missing", dataset_name,
        len(matched.same), matched.same.sum(), len(set(matched.fold.tolist())), matched.num_missing,
    )  # fmt: skip


def _report_sizes(dicts: list[dict], names: list[str]) -> None:
    counts = Counter(record["identity"] for record in dicts)
    sizes = sorted(counts.values())
    logger.info("%d images of %d identities to train on, %d to %d of each", len(dicts), len(sizes), sizes[0], sizes[-1])
    lost = [name for number, name in enumerate(names) if number not in counts]
    if lost:
        logger.warning(
            "%d identities lost all of their images to DATASETS.ON_BAD_IMAGE: %s", len(lost),
            ", ".join(itertools.islice(lost, 10)),
        )  # fmt: skip
