"""A config without the keys of this package."""

from retinanet_ext.d2 import CfgNode


def check_has_our_keys(section: CfgNode, key: str) -> None:
    """Refuse a config whose ``section`` lacks ``key``, one that this package adds there.

    Raises:
        KeyError: the message says how the keys are added.
    """
    if key not in section:
        raise KeyError(
            "the config has no keys of retinanet_ext; call retinanet_ext.add_retinanet_ext_config(cfg) right after "
            "get_cfg()"
        )
