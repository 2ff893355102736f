"""Finds overrides that change nothing, because no code reads them."""

from retinanet_ext.config.key_reads import is_read_by_models_only, keys_read_by_model

from .study import Study, arm_config, errors_name_arm


def check_overrides_are_read(study: Study) -> None:
    """Build the model of every arm, and refuse overrides of ``MODEL`` that are not read.

    The model of an arm must read each key that the arm overrides. At least one model must read each key that is
    overridden for all arms. Keys of other sections are not checked: loaders, solver and evaluators read them later.

    Raises:
        ValueError: an override is not read; names arm and keys.
    """
    unread_by_all = set(study.overrides)
    for arm in study.arms:
        cfg = arm_config(study, arm, datasets=False)
        with errors_name_arm(study, arm):
            read = keys_read_by_model(cfg)
        unread = [key for key in arm.overrides if is_read_by_models_only(key) and key not in read]
        if unread:
            raise ValueError(
                f"study {study.name}, arm {arm.name!r}: nothing reads {', '.join(unread)} in the model of this arm, so "
                "the override changes nothing; remove it, or select the part that reads it (CLS_LOSS.NAME, "
                "MATCHER.NAME and so on)"
            )
        unread_by_all -= read
    unread = [key for key in study.overrides if key in unread_by_all and is_read_by_models_only(key)]
    if unread:
        raise ValueError(
            f"study {study.name}: nothing reads {', '.join(unread)} in the model of any arm, so the override changes "
            "nothing; remove it"
        )
