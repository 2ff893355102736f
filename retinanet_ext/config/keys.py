"""The keys this package adds to Detectron2's config, each with its default and its meaning."""

from retinanet_ext.d2 import CfgNode as CN


def add_retinanet_ext_config(cfg: CN) -> None:
    """Add every key of this extension to ``cfg``, with its default, in place. Detectron2's keys keep theirs."""
    _add_data_keys(cfg)
    _add_model_keys(cfg)
    _add_run_keys(cfg)


def _add_data_keys(cfg: CN) -> None:
    # Datasets to register from the config alone: a list of mappings with the keys NAME and FORMAT (coco or voc),
    # for coco JSON and IMAGES, for voc ROOT and SPLIT, and optionally CLASSES (names, in class-id order).
    cfg.DATASETS.CUSTOM = []
    # What to do with annotations that cannot be trained on (no area, outside the image, unknown category):
    # "error" lists them all and stops; "drop" leaves them out; "clip" cuts boxes to the image and drops the rest.
    cfg.DATASETS.ON_BAD_ANNOTATION = "error"
    # What to do with images that are missing, unreadable or of another size than annotated: "error" or "drop".
    cfg.DATASETS.ON_BAD_IMAGE = "error"
    # How images are checked before training: "header" reads each file's size, "decode" all of it, "none" nothing.
    cfg.DATASETS.CHECK_IMAGES = "header"


def _add_model_keys(cfg: CN) -> None:
    # Names of the classes in class-id order. Filled in from the dataset, so that a saved config knows them.
    cfg.MODEL.CLASS_NAMES = []
    # The head, by its name in DENSE_HEAD_REGISTRY.
    cfg.MODEL.RETINANET.HEAD = CN()
    cfg.MODEL.RETINANET.HEAD.NAME = "RetinaNetHead"
    # The assignment of anchors to boxes, by its name in ANCHOR_MATCHER_REGISTRY.
    cfg.MODEL.RETINANET.MATCHER = CN()
    cfg.MODEL.RETINANET.MATCHER.NAME = "IoUMatcher"
    # Anchors that are the best for some box although IOU_THRESHOLDS does not make them foreground: "always"
    # foreground (Detectron2), only "above_low", the first threshold (the authors' code), or "never" (the paper).
    cfg.MODEL.RETINANET.MATCHER.LOW_QUALITY = "always"
    # ATSSMatcher only: how many anchors near a box's centre are candidates, on each level and for each of the anchors
    # that a position has.
    cfg.MODEL.RETINANET.MATCHER.ATSS = CN()
    cfg.MODEL.RETINANET.MATCHER.ATSS.TOPK = 9
    _add_cls_loss_keys(cfg)
    # The box loss, by its name in BOX_LOSS_REGISTRY; empty: Detectron2's key BBOX_REG_LOSS_TYPE decides.
    cfg.MODEL.RETINANET.BOX_LOSS = CN()
    cfg.MODEL.RETINANET.BOX_LOSS.NAME = ""
    # What the summed losses are divided by: "ema", a moving average of the foreground anchors in the batch
    # (Detectron2), or "foreground", the foreground anchors of each image (the paper).
    cfg.MODEL.RETINANET.NORMALIZER = "ema"
    # Less memory for more time: training keeps only the inputs of the residual blocks and of the head's subnets, and
    # computes what lies between again in the backward pass. Losses and gradients stay the same.
    cfg.MODEL.GRADIENT_CHECKPOINTING = False


def _add_cls_loss_keys(cfg: CN) -> None:
    # The classification loss, by its name in CLS_LOSS_REGISTRY. Detectron2's FOCAL_LOSS_ALPHA is the alpha of focal,
    # focal_star and balanced_cross_entropy, FOCAL_LOSS_GAMMA the gamma of all that have one.
    cfg.MODEL.RETINANET.CLS_LOSS = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.NAME = "focal"
    # In place of FOCAL_LOSS_ALPHA, one alpha in [0, 1] for each class, in class-id order; empty: one for all.
    cfg.MODEL.RETINANET.CLS_LOSS.CLASS_ALPHAS = []
    # focal_star: the shift of its steepness (paper, eq. 7).
    cfg.MODEL.RETINANET.CLS_LOSS.FOCAL_STAR = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.FOCAL_STAR.BETA = 1.0
    # hinge: the p_t from which on the loss is 0.
    cfg.MODEL.RETINANET.CLS_LOSS.HINGE = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.HINGE.MARGIN = 0.5
    # ohem: anchors kept in an image.
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM.BATCH = 128
    # ohem: the IoU above which an anchor is dropped for one of higher loss.
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM.NMS_THRESH = 0.5
    # ohem: background anchors for each foreground anchor, 3 for the paper's 1:3; 0: whatever the losses give.
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM.NEGATIVES_PER_POSITIVE = 0
    # varifocal: the weight of background entries.
    cfg.MODEL.RETINANET.CLS_LOSS.VARIFOCAL = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.VARIFOCAL.ALPHA = 0.75


def _add_run_keys(cfg: CN) -> None:
    # The type that SOLVER.AMP.ENABLED computes in: "float16" (CUDA only; with gradient scaling), "bfloat16", or empty:
    # float16 on CUDA, as Detectron2, and bfloat16 on a CPU. Weights, losses and the optimizer stay in float32.
    cfg.SOLVER.AMP.DTYPE = ""
    # Micro-batches that the images of a step, IMS_PER_BATCH over all processes, are split into, one after another:
    # memory for a smaller batch, losses and gradients of the whole one. Only batch norms see the smaller one.
    cfg.SOLVER.ACCUMULATE = 1
    # The metric that model_best.pth is chosen by, as "task/metric" of the evaluator, on the first of DATASETS.TEST;
    # empty: no best checkpoint.
    cfg.TEST.BEST_METRIC = "bbox/AP"
    # What the network computes in at inference: "float32", "bfloat16", or on CUDA "float16".
    cfg.TEST.DTYPE = "float32"
    # Compile the network at inference with torch.compile. Worth its minutes where images have few sizes.
    cfg.TEST.COMPILE = False
    # Replay recorded CUDA kernels at inference: less waiting between the small kernels of small batches.
    cfg.TEST.CUDA_GRAPHS = False
