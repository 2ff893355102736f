"""Keys for runs that fail safely: faults in data and losses, checkpoints, stops."""

from retinanet_ext.d2 import CfgNode as CN


def add_reliability_keys(cfg: CN) -> None:
    """Add the keys to ``cfg``, with their defaults, in place."""
    _add_data_keys(cfg)
    _add_model_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)


def _add_data_keys(cfg: CN) -> None:
    # How many different training images may turn out unreadable during training, where another image takes the place
    # of each: a number of images from 1, or below 1 a share of the training images, rounded up. With one more the run
    # stops; with 0 the first one stops it. Whatever DATASETS.ON_BAD_IMAGE says about the check before training.
    cfg.DATASETS.BAD_IMAGE_BUDGET = 0.01
    # Whether the file names of a COCO file may lead out of the folder of its images (`../x.jpg`, `/x.jpg`). If not,
    # such images count as bad images; see DATASETS.ON_BAD_IMAGE.
    cfg.DATASETS.ALLOW_FILES_OUTSIDE = False
    # Share of the training objects, 0 to 1, that must have an anchor with a sufficient IoU after the resize; below it,
    # and for a frequent class that lies far behind, training starts with a warning. 0: no warning. (COCO has 0.87 with
    # the anchors of the paper.)
    cfg.DATASETS.MIN_ANCHOR_COVERAGE = 0.8
    # Largest number of pixels of an image that prediction and embedding decode: a small file may hold a picture that
    # fills the memory. Larger ones are refused, or skipped where several files are predicted.
    cfg.INPUT.MAX_PIXELS = 100_000_000


def _add_model_keys(cfg: CN) -> None:
    # License of the weights that this run trains, such as "CC BY-NC 4.0"; a text that goes into each checkpoint and is
    # logged when it is loaded.
    cfg.MODEL.LICENSE = ""
    # Keep a moving average of the weights beside them: saved with the checkpoints, evaluated too (bbox_EMA/AP, ...),
    # and written as model_final_ema.pth at the end.
    cfg.MODEL.EMA = CN()
    cfg.MODEL.EMA.ENABLED = False
    # Share of the average that a step keeps, from 0 to below 1. After n steps it is at most (1 + n) / (10 + n).
    cfg.MODEL.EMA.DECAY = 0.999


def _add_solver_keys(cfg: CN) -> None:
    # How many checkpoints model_<iteration>.pth stay in OUTPUT_DIR: the newest ones, pruned after a new one is whole.
    # 0: all. model_final.pth and model_best.pth are not counted.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # What a run does about a loss or gradient that is not finite. The step is always examined and saved below
    # OUTPUT_DIR/incidents, and the weights stay those from before it. "stop" ends the run with an error; "skip" leaves
    # the step out; "rollback" goes back to the last good checkpoint, with a lower learning rate.
    cfg.SOLVER.NONFINITE = CN()
    cfg.SOLVER.NONFINITE.POLICY = "stop"
    # How many steps of a run may be skipped or rolled back; after that it stops. A resumed run goes on counting.
    cfg.SOLVER.NONFINITE.BUDGET = 10
    # Each rollback multiplies the learning rate by this factor, for the rest of the run. Above 0, up to 1.
    cfg.SOLVER.NONFINITE.LR_FACTOR = 0.5
    # The batch that learning rate and schedule were written for; 0: they hold as they are. If SOLVER.IMS_PER_BATCH is
    # another, a run begins by scaling them: BASE_LR with the batch (SGD only), MAX_ITER, STEPS, WARMUP_ITERS,
    # CHECKPOINT_PERIOD and TEST.EVAL_PERIOD against it. The config that the run saves has the scaled values, and its
    # own batch here.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0


def _add_test_keys(cfg: CN) -> None:
    # Write OUTPUT_DIR/report.html, a page that explains the run, at the end of training and of --eval-only.
    cfg.TEST.REPORT = True
    # How many checkpoints with the best TEST.BEST_METRIC stay: model_best.pth and, above 1, the next best ones as
    # model_best_<iteration>.pth; model_best.json lists them.
    cfg.TEST.BEST_KEPT = 1
    # End the run after this many evaluations in a row without improvement; 0: never.
    cfg.TEST.EARLY_STOP = CN()
    cfg.TEST.EARLY_STOP.PATIENCE = 0
    # The metric that must improve, such as bbox/AP or bbox_EMA/AP; if empty, TEST.BEST_METRIC. Higher is better.
    cfg.TEST.EARLY_STOP.METRIC = ""
    # Only a value above the best one by more than this, in the units of the metric, is an improvement.
    cfg.TEST.EARLY_STOP.MIN_DELTA = 0.0
