"""The records that a config's datasets hold, checked."""

import logging

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog

from .checks import check_dataset_dicts

logger = logging.getLogger(__name__)


def load_checked_dicts(cfg, names, filter_empty: bool) -> list[dict]:
    """Records of the datasets ``names``, after the checks and policies of ``DATASETS.ON_BAD_ANNOTATION`` and siblings.

    Args:
        cfg: the config; class ids are checked against ``MODEL.RETINANET.NUM_CLASSES``.
        names: registered datasets.
        filter_empty: leave out images without objects (crowds do not count), as Detectron2 does in training.

    Raises:
        ValueError: problems under the policy ``error``, or nothing left.
    """
    records = []
    for name in names:
        dicts, _ = check_dataset_dicts(
            DatasetCatalog.get(name),
            name,
            MetadataCatalog.get(name).get("thing_classes"),
            on_bad_annotation=cfg.DATASETS.ON_BAD_ANNOTATION,
            on_bad_image=cfg.DATASETS.ON_BAD_IMAGE,
            check_images=cfg.DATASETS.CHECK_IMAGES,
            num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
        )
        records.extend(dicts)
    # Only now: dropping bad annotations may have emptied some images.
    return _without_empty(records, names) if filter_empty else records


def _without_empty(records: list[dict], names) -> list[dict]:
    kept = [r for r in records if any(not a.get("iscrowd", 0) for a in r["annotations"])]
    if len(kept) < len(records):
        logger.info(
            "%d of %d images of %s have no objects and are not trained on; DATALOADER.FILTER_EMPTY_ANNOTATIONS False "
            "keeps them",
            len(records) - len(kept),
            len(records),
            ", ".join(names),
        )
    if not kept:
        raise ValueError(
            f"no image of {', '.join(names)} has an object to train on; check the annotations, or set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on background alone"
        )
    return kept
