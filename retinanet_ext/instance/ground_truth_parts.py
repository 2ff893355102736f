"""Checks of masks, keypoints and identities in a training batch. `detection/targets.py` has those of boxes."""


def check_masks_and_keypoints(batched_inputs: list[dict], *, mask_on: bool, num_keypoints: int) -> None:
    """Refuse a training batch that lacks what the model's branches learn from.

    Args:
        batched_inputs: each with ``instances``.
        mask_on: whether every image with objects needs ``gt_masks``.
        num_keypoints: J; every image with objects needs ``gt_keypoints`` ``(G, J, 3)``. 0: they are not needed.

    Raises:
        ValueError: names the file, what it lacks, and the key that asks for it.
    """
    for index, inputs in enumerate(batched_inputs):
        name, instances = inputs.get("file_name", f"image {index} of the batch"), inputs["instances"]
        if not len(instances):
            continue
        if mask_on and not instances.has("gt_masks"):
            raise ValueError(
                f"{name}: no gt_masks, but MODEL.MASK_ON is True; use data with segmentations and a mapper that reads "
                "them, or set MODEL.MASK_ON to False"
            )
        if num_keypoints:
            _check_keypoints(name, instances, num_keypoints)


def _check_keypoints(name: str, instances, num_keypoints: int) -> None:
    if not instances.has("gt_keypoints"):
        raise ValueError(
            f"{name}: no gt_keypoints, but MODEL.KEYPOINT_ON is True; use data with keypoints and a mapper that reads "
            "them, or set MODEL.KEYPOINT_ON to False"
        )
    found = instances.gt_keypoints.tensor.shape[1]
    if found != num_keypoints:
        raise ValueError(
            f"{name}: {found} keypoints per object, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {num_keypoints}; set "
            f"it to {found}"
        )


def check_identities(batched_inputs: list[dict], *, embedding_on: bool) -> None:
    """Refuse a training batch without ``gt_identities`` if the model has an embedding branch.

    Args:
        batched_inputs: each with ``instances``.
        embedding_on: whether every image with objects needs ``gt_identities``, int64 ``(G,)``, -1 for unknown ones.

    Raises:
        ValueError: names the file, and what makes the field.
    """
    for index, inputs in enumerate(batched_inputs if embedding_on else ()):
        instances = inputs["instances"]
        if len(instances) and not instances.has("gt_identities"):
            raise ValueError(
                f"{inputs.get('file_name', f'image {index} of the batch')}: no gt_identities, but MODEL.EMBEDDING_ON "
                "is True; wrap the mapper in retinanet_ext.data.annotation_identities.ObjectIdentityMapper (this "
                "package's trainer does so), or set MODEL.EMBEDDING_ON to False"
            )
