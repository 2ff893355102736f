"""Default values of the config keys of two-stage models: proposals, and heads on regions of interest (RoIs).

Names and values are Detectron2's, so that its Faster, Mask and Keypoint R-CNN files mean the same here.
"""

from .cfg_node import CfgNode


def add_two_stage_defaults(cfg: CfgNode) -> None:
    """Add the keys to a tree that has MODEL, INPUT, DATASETS and TEST, in place."""
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.PROPOSAL_GENERATOR = _proposal_generator()
    cfg.MODEL.RPN = _rpn()
    cfg.MODEL.ROI_HEADS = _roi_heads()
    cfg.MODEL.ROI_BOX_HEAD = _roi_box_head()
    cfg.MODEL.ROI_MASK_HEAD = _roi_mask_head()
    cfg.MODEL.ROI_KEYPOINT_HEAD = _roi_keypoint_head()
    # "polygon" keeps polygons until a head needs them; "bitmask" turns them into masks of the image's size.
    cfg.INPUT.MASK_FORMAT = "polygon"
    # OKS: standard deviation of each keypoint, in keypoint order. If empty, the evaluator's defaults hold.
    cfg.TEST.KEYPOINT_OKS_SIGMAS = []
    _add_precomputed_proposals(cfg)


def _add_precomputed_proposals(cfg: CfgNode) -> None:
    # Proposals from files are not supported; turning them on is an error when the config is merged.
    cfg.MODEL.LOAD_PROPOSALS = False
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = ()
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
    cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000


def _proposal_generator() -> CfgNode:
    node = CfgNode()
    node.NAME = "RPN"
    # Proposals of which a side is not longer than this, in input pixels, are dropped.
    node.MIN_SIZE = 0
    return node


def _rpn() -> CfgNode:
    rpn = CfgNode()
    rpn.HEAD_NAME = "StandardRPNHead"
    rpn.IN_FEATURES = ["res4"]
    # Output channels of the head's 3x3 convolutions, one entry each; -1: as many as come in.
    rpn.CONV_DIMS = [-1]
    # Training ignores anchors that reach this many pixels or more beyond the image; negative: no anchor is ignored.
    rpn.BOUNDARY_THRESH = -1
    # As MODEL.RETINANET.IOU_THRESHOLDS and IOU_LABELS. The best anchor of a box is foreground whatever its IoU.
    rpn.IOU_THRESHOLDS = [0.3, 0.7]
    rpn.IOU_LABELS = [0, -1, 1]
    # Anchors of an image that are sampled for the losses, and the largest fraction of them that is foreground.
    rpn.BATCH_SIZE_PER_IMAGE = 256
    rpn.POSITIVE_FRACTION = 0.5
    # smooth_l1, giou, diou or ciou.
    rpn.BBOX_REG_LOSS_TYPE = "smooth_l1"
    rpn.BBOX_REG_LOSS_WEIGHT = 1.0
    # Factors of the box deltas dx, dy, dw, dh.
    rpn.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    # Error at which smooth L1 turns from quadratic to linear; 0 is plain L1.
    rpn.SMOOTH_L1_BETA = 0.0
    # Factor of both losses.
    rpn.LOSS_WEIGHT = 1.0
    # Best proposals of a level that enter NMS, and best proposals of an image, over all levels, that leave it.
    rpn.PRE_NMS_TOPK_TRAIN = 12000
    rpn.PRE_NMS_TOPK_TEST = 6000
    rpn.POST_NMS_TOPK_TRAIN = 2000
    rpn.POST_NMS_TOPK_TEST = 1000
    rpn.NMS_THRESH = 0.7
    return rpn


def _roi_heads() -> CfgNode:
    heads = CfgNode()
    # StandardROIHeads (pooled from a pyramid or a single map) or Res5ROIHeads (C4).
    heads.NAME = "Res5ROIHeads"
    # Foreground classes; class NUM_CLASSES is background.
    heads.NUM_CLASSES = 80
    heads.IN_FEATURES = ["res4"]
    # A proposal whose best IoU lies in band i has label IOU_LABELS[i]: 0 background, -1 ignored, 1 foreground.
    heads.IOU_THRESHOLDS = [0.5]
    heads.IOU_LABELS = [0, 1]
    # Proposals of an image that are sampled for the losses, and the largest fraction of them that is foreground.
    heads.BATCH_SIZE_PER_IMAGE = 512
    heads.POSITIVE_FRACTION = 0.25
    # Inference: detections score above the threshold, then NMS per class.
    heads.SCORE_THRESH_TEST = 0.05
    heads.NMS_THRESH_TEST = 0.5
    # Training adds the ground truth boxes to the proposals.
    heads.PROPOSAL_APPEND_GT = True
    return heads


def _roi_box_head() -> CfgNode:
    head = CfgNode()
    # FastRCNNConvFCHead: NUM_CONV 3x3 convolutions, then NUM_FC fully connected layers. Unused by Res5ROIHeads.
    head.NAME = ""
    head.NUM_CONV = 0
    head.CONV_DIM = 256
    head.NUM_FC = 0
    head.FC_DIM = 1024
    # Norm after the convolutions, as FPN.NORM.
    head.NORM = ""
    _add_pooler(head)
    # As in MODEL.RPN.
    head.BBOX_REG_LOSS_TYPE = "smooth_l1"
    head.BBOX_REG_LOSS_WEIGHT = 1.0
    head.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    head.SMOOTH_L1_BETA = 0.0
    # One box per proposal, rather than one per class.
    head.CLS_AGNOSTIC_BBOX_REG = False
    # The other heads train on the boxes that the box head predicts, rather than on the proposals.
    head.TRAIN_ON_PRED_BOXES = False
    # A sigmoid for each class instead of a softmax; federated loss (for LVIS) needs it, samples FED_LOSS_NUM_CLASSES
    # classes, and prefers frequent ones by this power of their frequency.
    head.USE_SIGMOID_CE = False
    head.USE_FED_LOSS = False
    head.FED_LOSS_FREQ_WEIGHT_POWER = 0.5
    head.FED_LOSS_NUM_CLASSES = 50
    return head


def _roi_mask_head() -> CfgNode:
    head = CfgNode()
    head.NAME = "MaskRCNNConvUpsampleHead"
    # 3x3 convolutions before the upsampling one.
    head.NUM_CONV = 0
    head.CONV_DIM = 256
    head.NORM = ""
    _add_pooler(head)
    # One mask per object, rather than one per class.
    head.CLS_AGNOSTIC_MASK = False
    return head


def _roi_keypoint_head() -> CfgNode:
    head = CfgNode()
    head.NAME = "KRCNNConvDeconvUpsampleHead"
    # Output channels of the 3x3 convolutions, one entry each.
    head.CONV_DIMS = (512,) * 8
    head.NUM_KEYPOINTS = 17
    _add_pooler(head)
    # Training leaves out images with fewer annotated keypoints.
    head.MIN_KEYPOINTS_PER_IMAGE = 1
    # True: the loss is a mean over visible keypoints. False: it is divided by the number of keypoints that a full
    # sample of proposals would have.
    head.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = True
    head.LOSS_WEIGHT = 1.0
    return head


def _add_pooler(head: CfgNode) -> None:
    """Keys of the RoI layer before a head."""
    # Side of the pooled square in bins, and sampling points per bin and side; 0: adapted to the size of the RoI.
    head.POOLER_RESOLUTION = 14
    head.POOLER_SAMPLING_RATIO = 0
    head.POOLER_TYPE = "ROIAlignV2"
