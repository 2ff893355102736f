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
    # Whether the file names of a COCO file may lead out of the folder of its images (`../x.jpg`, `/x.jpg`). If not,
    # such images count as bad images; see DATASETS.ON_BAD_IMAGE.
    cfg.DATASETS.ALLOW_FILES_OUTSIDE = False
    # How many checkpoints model_<iteration>.pth stay in OUTPUT_DIR: the newest ones, pruned after a new one is whole.
    # 0: all. model_final.pth and model_best.pth are not counted.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # How many checkpoints with the best TEST.BEST_METRIC stay: model_best.pth and, above 1, the next best ones as
    # model_best_<iteration>.pth; model_best.json lists them.
    cfg.TEST.BEST_KEPT = 1
    # License of the weights that this run trains, such as "CC BY-NC 4.0"; a text that goes into each checkpoint and is
    # logged when it is loaded.
    cfg.MODEL.LICENSE = ""
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
    # Share of the training objects, 0 to 1, that must have an anchor with a sufficient IoU after the resize; below it,
    # and for a frequent class that lies far behind, training starts with a warning. 0: no warning. (COCO has 0.87 with
    # the anchors of the paper.)
    cfg.DATASETS.MIN_ANCHOR_COVERAGE = 0.8
