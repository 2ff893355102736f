"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    # How many checkpoints model_<iteration>.pth stay in OUTPUT_DIR: the newest ones, pruned after a new one is whole.
    # 0: all. model_final.pth and model_best.pth are not counted.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # How many checkpoints with the best TEST.BEST_METRIC stay: model_best.pth and, above 1, the next best ones as
    # model_best_<iteration>.pth; model_best.json lists them.
    cfg.TEST.BEST_KEPT = 1
    # License of the weights that this run trains, such as "CC BY-NC 4.0"; a text that goes into each checkpoint and is
    # logged when it is loaded.
    cfg.MODEL.LICENSE = ""
