"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    # How many different training images may turn out unreadable during training, where another image takes the place
    # of each: a number of images from 1, or below 1 a share of the training images, rounded up. With one more the run
    # stops; with 0 the first one stops it. Whatever DATASETS.ON_BAD_IMAGE says about the check before training.
    cfg.DATASETS.BAD_IMAGE_BUDGET = 0.01
    # The batch that learning rate and schedule were written for; 0: they hold as they are. If SOLVER.IMS_PER_BATCH is
    # another, a run begins by scaling them: BASE_LR with the batch (SGD only), MAX_ITER, STEPS, WARMUP_ITERS,
    # CHECKPOINT_PERIOD and TEST.EVAL_PERIOD against it. The config that the run saves has the scaled values, and its
    # own batch here.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    # Keep a moving average of the weights beside them: saved with the checkpoints, evaluated too (bbox_EMA/AP, ...),
    # and written as model_final_ema.pth at the end.
    cfg.MODEL.EMA = CN()
    cfg.MODEL.EMA.ENABLED = False
    # Share of the average that a step keeps, from 0 to below 1. After n steps it is at most (1 + n) / (10 + n).
    cfg.MODEL.EMA.DECAY = 0.999
    # End the run after this many evaluations in a row without improvement; 0: never.
    cfg.TEST.EARLY_STOP = CN()
    cfg.TEST.EARLY_STOP.PATIENCE = 0
    # The metric that must improve, such as bbox/AP or bbox_EMA/AP; if empty, TEST.BEST_METRIC. Higher is better.
    cfg.TEST.EARLY_STOP.METRIC = ""
    # Only a value above the best one by more than this, in the units of the metric, is an improvement.
    cfg.TEST.EARLY_STOP.MIN_DELTA = 0.0
