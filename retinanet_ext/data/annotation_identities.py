"""Identities of annotated objects: who or what an object is, beyond its class.

An annotation names the identity under its key ``identity``: an integer or a text. 7 and "7" are the same identity, also
in another dataset. Without the key, or with null, the identity is unknown.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import torch

logger = logging.getLogger(__name__)

UNKNOWN = -1


def identity_name(annotation: dict) -> str | None:
    """The identity of an annotation as a text; None if it is unknown."""
    identity = annotation.get("identity")
    return None if identity is None else str(identity)


def identity_numbers(records: Sequence[dict], names: Sequence[str]) -> dict[str, int]:
    """Number the identities of all records: 0, 1, ..., in the order of their names.

    Args:
        records: checked records of the training data. Crowds have no identity.
        names: dataset names, for the messages.

    Raises:
        ValueError: there are fewer than two identities, so that no embedding can be trained.
    """
    objects = [a for record in records for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    counts = Counter(name for a in objects if (name := identity_name(a)) is not None)
    if len(counts) < 2:
        found = f"the only identity is {next(iter(counts))!r}" if counts else "none of them has an identity"
        raise ValueError(
            f"MODEL.EMBEDDING_ON is True, but of the {len(objects)} objects of {', '.join(names)} {found}. Embeddings "
            "learn to tell two or more identities apart. Give the annotations of a COCO file the key \"identity\" (an "
            "integer or a text; Pascal VOC and YOLO files have none), or set MODEL.EMBEDDING_ON False."
        )
    known, repeated = sum(counts.values()), sum(count > 1 for count in counts.values())
    logger.info(
        "%d of %d objects of %s have one of %d identities; %d identities have more than one object",
        known, len(objects), ", ".join(names), len(counts), repeated,
    )  # fmt: skip
    if not repeated:
        logger.warning(
            "Every identity of %s has one object only, so embeddings never learn that two objects are the same; they "
            "compare boxes of one object (MODEL.ROI_EMBEDDING_HEAD.ROIS_PER_OBJECT)",
            ", ".join(names),
        )
    return {name: number for number, name in enumerate(sorted(counts))}


class ObjectIdentityMapper:
    """Wraps a mapper (dataset dict -> model input): the objects that it returns also have ``gt_identities``.

    Mappers leave out crowds and what a crop made empty, and none of them knows identities. So the wrapped mapper sees
    the index of each annotation in place of its class, and ``gt_classes`` of its result says which annotation each
    object is. This holds for any mapper that copies ``category_id`` to ``gt_classes``.

    Args:
        mapper: gets records with ``annotations``; each has a ``category_id`` and perhaps an ``identity``.
        numbers: identity -> number, from :func:`identity_numbers`.
    """

    def __init__(self, mapper: Callable[[dict], dict | None], numbers: dict[str, int]) -> None:
        self.mapper = mapper
        self.numbers = numbers

    def __call__(self, dataset_dict: dict) -> dict | None:
        """
        Args:
            dataset_dict: not changed.

        Returns:
            What the mapper returns. If it has ``instances``, these have ``gt_identities``, int64 ``(G,)``, -1 where the
            identity is unknown.
        """
        annotations = dataset_dict.get("annotations")
        if annotations is None:
            return self.mapper(dataset_dict)
        numbered = [{**annotation, "category_id": index} for index, annotation in enumerate(annotations)]
        mapped = self.mapper({**dataset_dict, "annotations": numbered})
        if mapped is None or "instances" not in mapped:
            return mapped
        instances = mapped["instances"]
        kept = [annotations[index] for index in instances.gt_classes.tolist()]
        identities = [UNKNOWN if (name := identity_name(a)) is None else self.numbers[name] for a in kept]
        instances.gt_classes = torch.tensor([a["category_id"] for a in kept], dtype=torch.int64)
        instances.gt_identities = torch.tensor(identities, dtype=torch.int64)
        return mapped
