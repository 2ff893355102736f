"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    # Share of the training objects, 0 to 1, that must have an anchor with a sufficient IoU after the resize; below it,
    # and for a frequent class that lies far behind, training starts with a warning. 0: no warning. (COCO has 0.87 with
    # the anchors of the paper.)
    cfg.DATASETS.MIN_ANCHOR_COVERAGE = 0.8
