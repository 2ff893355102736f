"""Builds a config from defaults, a YAML file with its bases, overrides, and the training data."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from retinanet_ext.d2 import ENGINE, get_cfg
from retinanet_ext.d2 import CfgNode as CN
from retinanet_ext.data.doctor.class_ids import config_category_ids, config_class_names, fill_num_classes
from retinanet_ext.data.doctor.keypoint_numbers import check_oks_sigmas, refuse_formats_without, resolve_num_keypoints
from retinanet_ext.data.doctor.tasks import NUM_KEYPOINTS_KEY
from retinanet_ext.data.identity_datasets import adapt_to_identities, embeds_identities, refuse_identity_data
from retinanet_ext.data.keypoint_metadata import dataset_skeleton
from retinanet_ext.data.registration import register_custom_datasets

from .keys import add_retinanet_ext_config
from .legal_values import check_values
from .yaml_files import find_config, flat_keys, read_config_file, unknown_key_message


def load_config(config_file: str | None = None, opts: Sequence[str] = (), *, datasets: bool = True) -> CN:
    """Build a config from a YAML file and overrides.

    Args:
        config_file: YAML with ``_BASE_`` inheritance, read by the safe loader: a path, or the name of a config that
            comes with this package, such as ``quick/retinanet.yaml``. None: defaults only.
        opts: alternating keys and values, as on the command line.
        datasets: register ``DATASETS.CUSTOM``, and take from the data ``NUM_CLASSES`` of ``MODEL.RETINANET`` and
            ``MODEL.ROI_HEADS``, with keypoints also ``MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS``, and
            ``MODEL.CLASS_NAMES``, ``CLASS_IDS``; for FaceNet only ``MODEL.EMBEDDING.NUM_IDENTITIES``. A value in file
            or opts must agree with the data if the model reads it. Set to False for inference without the data.

    Returns:
        The config, not frozen.

    Raises:
        FileNotFoundError: no such file.
        KeyError: a key does not exist; the message names the nearest keys.
        ValueError: a value has the wrong type or is not legal, or asks for a part that the engine does not have; the
            classes, keypoints or identities disagree with the data.
    """
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    defaults = cfg.clone()
    mentioned = []
    if config_file:
        config_file = find_config(config_file)
        loaded = read_config_file(config_file)
        if ENGINE == "lite":  # Detectron2 has these keys
            cfg.keep_keys_of_other_detectors(loaded)
    # Keys are checked here, not by the engine, so that both engines give the same helpful message.
    legal = set(flat_keys(cfg))
    if config_file:
        _drop_empty_sections(loaded, cfg)
        mentioned += flat_keys(loaded)
        _refuse_unknown([*mentioned, *_empty_sections(loaded)], legal, config_file)
        _write_integers_as_floats(loaded, cfg)
        with _names_source(config_file):
            cfg.merge_from_other_cfg(CN(loaded))
    if len(opts) % 2:
        raise ValueError(f"overrides come as KEY VALUE pairs, but there are {len(opts)} words: {' '.join(opts)}")
    _refuse_unknown(opts[::2], legal, "the overrides")
    with _names_source("the overrides"):
        cfg.merge_from_list(_with_integers_as_floats(opts, cfg))
    mentioned += opts[::2]
    _refuse_ignored_box_loss(cfg, opts[::2])
    with _names_source(" and ".join(filter(None, [config_file, "the overrides" if opts else ""])) or "the defaults"):
        check_values(cfg, defaults)
    if datasets:
        _adapt_to_data(cfg, mentioned)
    # Without the data, the number of keypoints may still be a default that the data will replace.
    if cfg.MODEL.KEYPOINT_ON and (datasets or NUM_KEYPOINTS_KEY in mentioned):
        check_oks_sigmas(cfg)
    return cfg


@contextmanager
def _names_source(where: str) -> Iterator[None]:
    """Add the source of the value to a ValueError and, for the most frequent mistake, how a list is written."""
    try:
        yield
    # The engines' merging also fails with other types, for values that no key takes.
    except (ValueError, TypeError, AssertionError, AttributeError, RecursionError, MemoryError) as error:
        is_list = any(f"<class '{kind}'>" in str(error) for kind in ("list", "tuple"))
        hint = "; a list is written ['a', 'b'], a single entry ['a'], in quotes on the command line" if is_list else ""
        raise ValueError(f"{where}: {error}{hint}") from None


def _drop_empty_sections(loaded: dict, cfg: CN) -> None:
    """Remove sections whose lines are all commented out. They read as null, and are no error."""
    for name in list(loaded):
        if isinstance(cfg.get(name), CN):
            if isinstance(loaded[name], dict):
                _drop_empty_sections(loaded[name], cfg[name])
            if loaded[name] is None or loaded[name] == {}:
                del loaded[name]


def _empty_sections(loaded: dict, prefix: str = "") -> Iterator[str]:
    """Names of sections without keys. Those that exist were dropped before."""
    for name, value in loaded.items():
        if value == {}:
            yield f"{prefix}{name}"
        elif isinstance(value, dict):
            yield from _empty_sections(value, f"{prefix}{name}.")


def _write_integers_as_floats(loaded: dict, cfg: CN) -> None:
    """Turn integers into floats where the default is a float. The engines would refuse 2 in place of 2.0."""
    for name, value in loaded.items():
        if isinstance(value, dict):
            _write_integers_as_floats(value, cfg[name])
        elif type(value) is int and isinstance(cfg[name], float):
            loaded[name] = float(value)


def _with_integers_as_floats(opts: Sequence[str], cfg: CN) -> list[str]:
    words = list(opts)
    for index, key in enumerate(words[::2]):
        current = cfg
        for part in key.split("."):
            current = current[part]
        if isinstance(current, float) and re.fullmatch(r"[+-]?[0-9]+", str(words[2 * index + 1])):
            words[2 * index + 1] = f"{words[2 * index + 1]}.0"
    return words


def _refuse_unknown(keys: Iterable[str], legal: set[str], where: str) -> None:
    messages = [unknown_key_message(key, sorted(legal)) for key in keys if key not in legal]
    if messages:
        raise KeyError(f"{where}: {'; '.join(messages)}")


def _refuse_ignored_box_loss(cfg: CN, overridden: Sequence[str]) -> None:
    """The model cannot tell smooth_l1, the default of BBOX_REG_LOSS_TYPE, from an override that asks for it."""
    for section in ("RETINANET", "RPN", "ROI_BOX_HEAD"):
        name, asked = cfg.MODEL[section].BOX_LOSS.NAME, cfg.MODEL[section].BBOX_REG_LOSS_TYPE
        key = f"MODEL.{section}.BBOX_REG_LOSS_TYPE"
        if key in overridden and name and name != asked:
            raise ValueError(
                f"the overrides: {key} is {asked!r}, but MODEL.{section}.BOX_LOSS.NAME is {name!r}, which comes first; "
                "override BOX_LOSS.NAME instead"
            )


def _adapt_to_data(cfg: CN, mentioned: Sequence[str]) -> None:
    register_custom_datasets(cfg)
    if embeds_identities(cfg):
        adapt_to_identities(cfg, mentioned)
        return
    refuse_identity_data(cfg)
    refuse_formats_without(cfg)
    fill_num_classes(cfg, mentioned)
    if cfg.MODEL.KEYPOINT_ON:
        count = resolve_num_keypoints(cfg, NUM_KEYPOINTS_KEY in mentioned)
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = count
    cfg.MODEL.CLASS_NAMES = config_class_names(cfg) or cfg.MODEL.CLASS_NAMES
    cfg.MODEL.CLASS_IDS = config_category_ids(cfg) or cfg.MODEL.CLASS_IDS
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TRAIN:
        names, lines = dataset_skeleton(cfg.DATASETS.TRAIN[0])
        cfg.MODEL.KEYPOINT_NAMES = names or cfg.MODEL.KEYPOINT_NAMES
        cfg.MODEL.KEYPOINT_LINES = lines or cfg.MODEL.KEYPOINT_LINES
