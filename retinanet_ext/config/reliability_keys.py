"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    # Write OUTPUT_DIR/report.html, a page that explains the run, at the end of training and of --eval-only.
    cfg.TEST.REPORT = True
    # How many different training images may turn out unreadable during training, where another image takes the place
    # of each: a number of images from 1, or below 1 a share of the training images, rounded up. With one more the run
    # stops; with 0 the first one stops it. Whatever DATASETS.ON_BAD_IMAGE says about the check before training.
    cfg.DATASETS.BAD_IMAGE_BUDGET = 0.01
