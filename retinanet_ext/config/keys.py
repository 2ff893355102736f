"""The keys this package adds to Detectron2's config, each with its default and its meaning."""

import retinanet_ext.detection  # registers FocalRetinaNet: whoever has its keys can build it
import retinanet_ext.embedding  # registers FaceNet
import retinanet_ext.instance  # noqa: F401  (registers MaskRCNN and InstanceRetinaNet)
from retinanet_ext.d2 import CfgNode as CN

from .embedding_keys import add_embedding_keys
from .reliability_keys import add_reliability_keys


def add_retinanet_ext_config(cfg: CN) -> None:
    """Add every key of this extension to ``cfg``, with its default, in place. Detectron2's keys keep theirs."""
    _add_data_keys(cfg)
    _add_model_keys(cfg)
    _add_run_keys(cfg)
    add_embedding_keys(cfg)
    add_reliability_keys(cfg)


def _add_data_keys(cfg: CN) -> None:
    # Datasets that the config itself registers: a list of mappings. Each has NAME and FORMAT (coco, voc, yolo or
    # identities); coco also needs JSON and IMAGES, the others ROOT. PART takes a part of them; docs/data.md has all
    # keys. Only `retinanet_ext.load_config` registers them, not `merge_from_file`.
    cfg.DATASETS.CUSTOM = []
    # Annotations that cannot be trained on (box without area or beyond the image, unknown category, iscrowd other than
    # 0 and 1, malformed polygon or line, and if these are trained faulty masks and keypoints): "error" reports them and
    # stops; "drop" removes them, or repairs what is clear; "clip" also cuts boxes at the image border.
    cfg.DATASETS.ON_BAD_ANNOTATION = "error"
    # Images whose file is missing, unreadable, deeper than 8 bits or not of the annotated size, as the check before
    # training finds them: "error" reports them and stops; "drop" removes them, from training and from evaluation.
    # DATASETS.BAD_IMAGE_BUDGET is for those that fail later.
    cfg.DATASETS.ON_BAD_IMAGE = "error"
    # How image files are checked before training: "decode" reads all pixels, "header" reads only the size of each
    # image, "none" reads nothing. "auto" decodes the datasets of DATASETS.TEST and those of up to 20,000 images.
    cfg.DATASETS.CHECK_IMAGES = "auto"


def _add_model_keys(cfg: CN) -> None:
    # Class names in class-id order. They are filled in from the datasets, so that a saved config contains them.
    cfg.MODEL.CLASS_NAMES = []
    # Category ids of the classes in the training data, in class-id order, for files of detections. They are filled in
    # from COCO-format data; if empty, such files number the classes from 1.
    cfg.MODEL.CLASS_IDS = []
    # With MODEL.KEYPOINT_ON: names of the keypoints, and the lines of a skeleton, each [name, name, [red, green, blue]]
    # with colours in 0 to 255. They are filled in from the training data, so that pictures of a saved run show them.
    cfg.MODEL.KEYPOINT_NAMES = []
    cfg.MODEL.KEYPOINT_LINES = []
    # Name of the head in DENSE_HEAD_REGISTRY.
    cfg.MODEL.RETINANET.HEAD = CN()
    cfg.MODEL.RETINANET.HEAD.NAME = "RetinaNetHead"
    # Name of the matcher in ANCHOR_MATCHER_REGISTRY. The matcher assigns anchors to ground truth boxes.
    cfg.MODEL.RETINANET.MATCHER = CN()
    cfg.MODEL.RETINANET.MATCHER.NAME = "IoUMatcher"
    # IoUMatcher only: when the anchor with the largest IoU for some box becomes foreground although IOU_THRESHOLDS
    # does not make it so. "always" (Detectron2), "above_low": if its IoU reaches the first threshold (the authors'
    # code), or "never" (the paper).
    cfg.MODEL.RETINANET.MATCHER.LOW_QUALITY = "always"
    # ATSSMatcher only: number of positions nearest to a box's centre, on each level, whose anchors are candidates.
    cfg.MODEL.RETINANET.MATCHER.ATSS = CN()
    cfg.MODEL.RETINANET.MATCHER.ATSS.TOPK = 9
    _add_cls_loss_keys(cfg)
    _add_stage_loss_keys(cfg)
    _add_roi_keys(cfg)
    # Name of the box loss in BOX_LOSS_REGISTRY; if empty, Detectron2's key BBOX_REG_LOSS_TYPE decides.
    cfg.MODEL.RETINANET.BOX_LOSS = CN()
    cfg.MODEL.RETINANET.BOX_LOSS.NAME = ""
    # Divisor of the summed losses: "ema", a moving average of the number of foreground anchors in a batch (Detectron2),
    # or "foreground", the number of foreground anchors in each image (the paper).
    cfg.MODEL.RETINANET.NORMALIZER = "ema"
    # Saves memory and costs time: training keeps only the inputs of the residual blocks and of the head's subnets, and
    # computes everything inside them again in the backward pass. Losses and gradients stay the same.
    cfg.MODEL.GRADIENT_CHECKPOINTING = False


def _add_roi_keys(cfg: CN) -> None:
    # Res5ROIHeads only: stride of the first block of res5 on an RoI's features. 2 with POOLER_RESOLUTION 14 is
    # Detectron2's form, 1 with POOLER_RESOLUTION 7 that of the Mask R-CNN paper (figure 4); both give maps of 7x7.
    cfg.MODEL.ROI_HEADS.RES5_STRIDE = 2
    # InstanceRetinaNet, in training: masks and keypoints learn on the detections that overlap an object, and on the
    # objects' own boxes. IoU above which NMS drops a detection before RoIs are drawn from them (MODEL.ROI_HEADS).
    cfg.MODEL.RETINANET.ROIS = CN()
    cfg.MODEL.RETINANET.ROIS.NMS_THRESH = 0.8
    # InstanceRetinaNet, in training: largest number of detections of an image that RoIs are drawn from.
    cfg.MODEL.RETINANET.ROIS.MAX_PER_IMAGE = 300
    # MLPMaskHead only: number of hidden fully connected layers.
    cfg.MODEL.ROI_MASK_HEAD.NUM_FC = 2
    # MLPMaskHead only: outputs of each hidden layer.
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 1024


def _add_cls_loss_keys(cfg: CN) -> None:
    # Name of the classification loss in CLS_LOSS_REGISTRY. Detectron2's key FOCAL_LOSS_ALPHA sets the alpha of focal,
    # focal_star and balanced_cross_entropy; FOCAL_LOSS_GAMMA sets the gamma of every loss that has one.
    cfg.MODEL.RETINANET.CLS_LOSS = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.NAME = "focal"
    # One alpha in [0, 1] for each class, in class-id order. If empty, FOCAL_LOSS_ALPHA holds for all classes.
    cfg.MODEL.RETINANET.CLS_LOSS.CLASS_ALPHAS = []
    # focal_star: beta, the shift of the loss curve (paper, appendix A). A larger beta asks for a smaller margin.
    cfg.MODEL.RETINANET.CLS_LOSS.FOCAL_STAR = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.FOCAL_STAR.BETA = 1.0
    # hinge: the loss is 0 where p_t is at least this.
    cfg.MODEL.RETINANET.CLS_LOSS.HINGE = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.HINGE.MARGIN = 0.5
    # ohem: largest number of anchors kept in an image.
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM.BATCH = 128
    # ohem: an anchor is dropped if its IoU with an anchor of higher loss is above this.
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM.NMS_THRESH = 0.5
    # ohem: background anchors for each foreground anchor, 3 for the paper's 1:3. With 0, only the loss decides.
    cfg.MODEL.RETINANET.CLS_LOSS.OHEM.NEGATIVES_PER_POSITIVE = 0
    # varifocal: weight of the background entries.
    cfg.MODEL.RETINANET.CLS_LOSS.VARIFOCAL = CN()
    cfg.MODEL.RETINANET.CLS_LOSS.VARIFOCAL.ALPHA = 0.75


def _add_stage_loss_keys(cfg: CN) -> None:
    """Losses of the two stages of a two-stage model: the proposals, and the box head."""
    # Name of the proposals' classification loss in CLS_LOSS_REGISTRY: object or not, by one sigmoid (the default is
    # Detectron2's). With MODEL.RPN.BATCH_SIZE_PER_IMAGE 0 all anchors take part, and the sum of the losses is divided
    # by the number of foreground anchors, as focal losses need it.
    cfg.MODEL.RPN.CLS_LOSS = CN()
    cfg.MODEL.RPN.CLS_LOSS.NAME = "cross_entropy"
    # Alpha and gamma of the losses that have them, in place of MODEL.RETINANET.FOCAL_LOSS_ALPHA and FOCAL_LOSS_GAMMA.
    cfg.MODEL.RPN.CLS_LOSS.ALPHA = 0.25
    # The focusing parameter, >= 0.
    cfg.MODEL.RPN.CLS_LOSS.GAMMA = 2.0
    # One alpha for the only class, "object"; if empty, ALPHA.
    cfg.MODEL.RPN.CLS_LOSS.CLASS_ALPHAS = []
    # Foreground probability that the untrained classifier predicts, set by its bias; focal losses need it (0.01 in
    # their paper). With 0 the bias is 0, as in Detectron2.
    cfg.MODEL.RPN.CLS_LOSS.PRIOR_PROB = 0.0
    # Name of the proposals' box loss in BOX_LOSS_REGISTRY; if empty, Detectron2's key BBOX_REG_LOSS_TYPE decides.
    cfg.MODEL.RPN.BOX_LOSS = CN()
    cfg.MODEL.RPN.BOX_LOSS.NAME = ""
    # "softmax" over the classes and background (Detectron2), or a loss in CLS_LOSS_REGISTRY: a sigmoid for each class.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS = CN()
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = "softmax"
    # Alpha and gamma, as in MODEL.RPN.CLS_LOSS.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.ALPHA = 0.25
    # The focusing parameter, >= 0.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.GAMMA = 2.0
    # One alpha in [0, 1] for each foreground class, in class-id order; if empty, ALPHA holds for all.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.CLASS_ALPHAS = []
    # As MODEL.RPN.CLS_LOSS.PRIOR_PROB. "softmax" does not read it.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.PRIOR_PROB = 0.0
    # Name of the box head's box loss, as MODEL.RPN.BOX_LOSS.NAME.
    cfg.MODEL.ROI_BOX_HEAD.BOX_LOSS = CN()
    cfg.MODEL.ROI_BOX_HEAD.BOX_LOSS.NAME = ""


def _add_run_keys(cfg: CN) -> None:
    # Type of mixed precision if SOLVER.AMP.ENABLED is set: "float16" (CUDA only, with gradient scaling), "bfloat16", or
    # empty: float16 on CUDA, as in Detectron2, bfloat16 on a CPU that has instructions for it, and float32 on other
    # CPUs. Weights, losses and optimizer stay in float32.
    cfg.SOLVER.AMP.DTYPE = ""
    # Each process splits its images of a step into this many micro-batches and computes one after the other. This takes
    # the memory of a micro-batch and gives the losses and gradients of the whole batch. Only batch norms see the
    # micro-batches. MaskRCNN samples in each micro-batch, so its heads' losses are a mean over micro-batches, weighted
    # by their images.
    cfg.SOLVER.ACCUMULATE = 1
    # Metric that chooses model_best.pth: "task/metric" of the evaluator, on the first dataset of DATASETS.TEST. If
    # empty, no model_best.pth is written. "segm/AP" and "keypoints/AP" for models with masks or keypoints.
    cfg.TEST.BEST_METRIC = "bbox/AP"
    # Type that the network computes in at inference: "float32", "bfloat16", or on CUDA "float16".
    cfg.TEST.DTYPE = "float32"
    # Compile the network with torch.compile at inference. This takes minutes and pays off if images have few sizes.
    cfg.TEST.COMPILE = False
    # Replay recorded CUDA kernels at inference. This shortens the waits between the small kernels of small batches.
    cfg.TEST.CUDA_GRAPHS = False
