"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    # Write OUTPUT_DIR/report.html, a page that explains the run, at the end of training and of --eval-only.
    cfg.TEST.REPORT = True
