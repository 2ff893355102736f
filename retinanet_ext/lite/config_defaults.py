"""Every config key of the engine, with its default.

Names and values are Detectron2's, so that its YAML files mean the same here. Those of two-stage models are in
``two_stage_defaults.py``. Keys of detectors that `lite` does not have are left out; ``other_detectors.py`` says what
becomes of them in a config file.
"""

from .cfg_node import CfgNode
from .two_stage_defaults import add_two_stage_defaults


def default_config() -> CfgNode:
    """A new, mutable tree of all keys."""
    cfg = CfgNode()
    cfg.VERSION = 2
    cfg.MODEL = _model()
    cfg.INPUT = _input()
    cfg.DATASETS = CfgNode({"TRAIN": (), "TEST": ()})  # names in DatasetCatalog
    cfg.DATALOADER = _dataloader()
    cfg.SOLVER = _solver()
    cfg.TEST = _test()
    add_two_stage_defaults(cfg)
    # Folder for everything that a run writes.
    cfg.OUTPUT_DIR = "./output"
    # >= 0: seed of all random generators. Negative: a new one for every run.
    cfg.SEED = -1
    # Lets cuDNN time its algorithms per input shape. Costs more than it gives when image sizes vary.
    cfg.CUDNN_BENCHMARK = False
    # float32 matrix products on CUDA: "" leaves PyTorch's setting, or "highest", "high", "medium".
    cfg.FLOAT32_PRECISION = ""
    # Iterations between pictures of training batches in the event log; 0: none.
    cfg.VIS_PERIOD = 0
    return cfg


def _model() -> CfgNode:
    model = CfgNode()
    model.META_ARCHITECTURE = "GeneralizedRCNN"
    # What torch.device() takes: "cuda", "cuda:1", "cpu".
    model.DEVICE = "cuda"
    # Checkpoint to start from: path or URL, "" for none.
    model.WEIGHTS = ""
    # One value per channel in the order of INPUT.FORMAT, for pixels 0..255: (pixel - mean) / std.
    # The Caffe-style backbone weights were trained with a std of 1.
    model.PIXEL_MEAN = [103.530, 116.280, 123.675]
    model.PIXEL_STD = [1.0, 1.0, 1.0]
    model.BACKBONE = CfgNode()
    model.BACKBONE.NAME = "build_resnet_backbone"
    # The stem and the first FREEZE_AT - 1 stages do not train; 0: all train; 1: the stem is frozen.
    model.BACKBONE.FREEZE_AT = 2
    model.FPN = CfgNode()
    # Bottom-up features that feed the pyramid, highest resolution first.
    model.FPN.IN_FEATURES = []
    model.FPN.OUT_CHANNELS = 256
    # "": convolutions with bias and no norm, or a name that get_norm knows.
    model.FPN.NORM = ""
    # How a lateral and the upsampled level above it are joined: "sum" or "avg".
    model.FPN.FUSE_TYPE = "sum"
    model.RESNETS = _resnets()
    model.ANCHOR_GENERATOR = _anchor_generator()
    model.RETINANET = _retinanet()
    return model


def _resnets() -> CfgNode:
    resnets = CfgNode()
    # 18, 34 (basic blocks), 50, 101, 152 (bottlenecks).
    resnets.DEPTH = 50
    # Among "stem", "res2", ..., "res5"; later stages than the last one named are not built.
    resnets.OUT_FEATURES = ["res4"]
    # ResNeXt: groups of the 3x3 convolution and channels of one group in res2. 32x8d is 32 and 8.
    resnets.NUM_GROUPS = 1
    resnets.WIDTH_PER_GROUP = 64
    # FrozenBN, BN, SyncBN, GN: see get_norm.
    resnets.NORM = "FrozenBN"
    # A bottleneck's stride is in its first, 1x1 convolution (MSRA's weights), not in its 3x3 (PyTorch's).
    resnets.STRIDE_IN_1X1 = True
    # 2: res5 keeps the resolution of res4 and dilates its 3x3 convolutions.
    resnets.RES5_DILATION = 1
    # Output channels of the first stage, doubled by every later one; 64 for DEPTH 18 and 34.
    resnets.RES2_OUT_CHANNELS = 256
    resnets.STEM_OUT_CHANNELS = 64
    # Deformable convolutions are not supported; turning them on is an error when the backbone is built.
    resnets.DEFORM_ON_PER_STAGE = [False, False, False, False]
    resnets.DEFORM_MODULATED = False
    resnets.DEFORM_NUM_GROUPS = 1
    return resnets


def _anchor_generator() -> CfgNode:
    anchors = CfgNode()
    anchors.NAME = "DefaultAnchorGenerator"
    # Square roots of anchor areas in input pixels: one list per feature level, or one list for all levels.
    anchors.SIZES = [[32, 64, 128, 256, 512]]
    # Height / width, per level as SIZES. An anchor exists for every pair of size and ratio.
    anchors.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    # Where the first centre lies, as a fraction of the stride, in [0, 1).
    anchors.OFFSET = 0.0
    # Only rotated anchors, which are not supported, have angles.
    anchors.ANGLES = [[-90, 0, 90]]
    return anchors


def _retinanet() -> CfgNode:
    retinanet = CfgNode()
    # Foreground classes. Background is not a class, since every class has its own sigmoid.
    retinanet.NUM_CLASSES = 80
    retinanet.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # 3x3 convolutions in each of the two towers, before the convolution that predicts.
    retinanet.NUM_CONVS = 4
    # Norm in the towers, as FPN.NORM.
    retinanet.NORM = ""
    # The thresholds cut [0, 1] into bands. An anchor whose best IoU lies in band i has label IOU_LABELS[i]:
    # 0 background, -1 ignored, 1 foreground.
    retinanet.IOU_THRESHOLDS = [0.4, 0.5]
    retinanet.IOU_LABELS = [0, -1, 1]
    # Foreground probability that the untrained classifier predicts, set by its bias.
    retinanet.PRIOR_PROB = 0.01
    retinanet.FOCAL_LOSS_GAMMA = 2.0
    retinanet.FOCAL_LOSS_ALPHA = 0.25
    # smooth_l1, giou, diou or ciou.
    retinanet.BBOX_REG_LOSS_TYPE = "smooth_l1"
    # Error at which smooth L1 turns from quadratic to linear; 0 is plain L1.
    retinanet.SMOOTH_L1_LOSS_BETA = 0.1
    # Factors of the box deltas dx, dy, dw, dh.
    retinanet.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    # Inference, in this order: candidates score above the threshold, at most TOPK of each level, then NMS.
    retinanet.SCORE_THRESH_TEST = 0.05
    retinanet.TOPK_CANDIDATES_TEST = 1000
    retinanet.NMS_THRESH_TEST = 0.5
    return retinanet


def _input() -> CfgNode:
    node = CfgNode()
    # Channels the model gets: BGR, RGB, or L (grey, one channel).
    node.FORMAT = "BGR"
    # Length of the shorter side after resizing, in pixels, unless the longer one would exceed MAX_SIZE. In
    # training one of the values is drawn ("choice"), or any integer between the two given ("range").
    node.MIN_SIZE_TRAIN = (800,)
    node.MIN_SIZE_TRAIN_SAMPLING = "choice"
    node.MAX_SIZE_TRAIN = 1333
    # 0: test images are not resized.
    node.MIN_SIZE_TEST = 800
    node.MAX_SIZE_TEST = 1333
    # "horizontal", "vertical" or "none", with probability 1/2.
    node.RANDOM_FLIP = "horizontal"
    # TYPE relative and relative_range: SIZE is (height, width) as a fraction of the image, exact or the lower
    # end of a range; absolute and absolute_range: SIZE is in pixels, exact or both ends of the range.
    node.CROP = CfgNode({"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]})
    return node


def _dataloader() -> CfgNode:
    node = CfgNode()
    # Worker processes for each training process; 0: images are loaded by the training process itself.
    node.NUM_WORKERS = 4
    # A batch holds only wide or only tall images, which saves padding.
    node.ASPECT_RATIO_GROUPING = True
    # TrainingSampler or RepeatFactorTrainingSampler.
    node.SAMPLER_TRAIN = "TrainingSampler"
    # RepeatFactorTrainingSampler: images of categories that appear in less than this fraction of the images are
    # repeated. The factor is threshold / fraction, or with REPEAT_SQRT its square root.
    node.REPEAT_THRESHOLD = 0.0
    node.REPEAT_SQRT = True
    # Training leaves out images that have no object.
    node.FILTER_EMPTY_ANNOTATIONS = True
    return node


def _solver() -> CfgNode:
    solver = CfgNode()
    # Images in one iteration, over all processes together.
    solver.IMS_PER_BATCH = 16
    solver.MAX_ITER = 40000
    # If > 0: the number of processes the schedule was written for. A job with another number of processes scales
    # batch size, learning rate and numbers of iterations.
    solver.REFERENCE_WORLD_SIZE = 0
    solver.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    solver.BASE_LR = 0.001
    # Learning rate at the end of WarmupCosineLR.
    solver.BASE_LR_END = 0.0
    # WarmupMultiStepLR: the rate is multiplied by GAMMA at each of these iterations.
    solver.STEPS = (30000,)
    solver.GAMMA = 0.1
    # WarmupStepWithFixedGammaLR: the rate is multiplied by GAMMA this many times, at equal intervals.
    solver.NUM_DECAYS = 3
    # During the first WARMUP_ITERS iterations the rate rises from WARMUP_FACTOR times its scheduled value
    # ("linear"), or stays there ("constant").
    solver.WARMUP_FACTOR = 1.0 / 1000
    solver.WARMUP_ITERS = 1000
    solver.WARMUP_METHOD = "linear"
    # True: the iterations after warm-up run the whole schedule; False: they run it without its beginning.
    solver.RESCALE_INTERVAL = False
    # SGD.
    solver.MOMENTUM = 0.9
    solver.NESTEROV = False
    solver.WEIGHT_DECAY = 0.0001
    # Weight decay of norm layers, and of biases (None: that of the layer's weights).
    solver.WEIGHT_DECAY_NORM = 0.0
    solver.WEIGHT_DECAY_BIAS = None
    # Learning rate of biases, relative to the others.
    solver.BIAS_LR_FACTOR = 1.0
    # Iterations between checkpoints.
    solver.CHECKPOINT_PERIOD = 5000
    # CLIP_TYPE "value": each entry of a gradient is cut to +-CLIP_VALUE; "norm": the gradient of each
    # parameter is scaled down until its NORM_TYPE-norm (inf: its largest entry) is at most CLIP_VALUE.
    solver.CLIP_GRADIENTS = CfgNode({"ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0})
    # Mixed precision.
    solver.AMP = CfgNode({"ENABLED": False})
    return solver


def _test() -> CfgNode:
    test = CfgNode()
    # Best-scoring detections kept per image, over all classes.
    test.DETECTIONS_PER_IMAGE = 100
    # Iterations between evaluations in training; 0: only after the last.
    test.EVAL_PERIOD = 0
    # For regression tests: a list of [task, metric, expected value, tolerance], e.g. ["bbox", "AP", 38.5, 0.2].
    test.EXPECTED_RESULTS = []
    # Test-time augmentation: every image at each of these sizes (shorter side, pixels), plain and flipped.
    test.AUG = CfgNode({"ENABLED": False})
    test.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    test.AUG.MAX_SIZE = 4000
    test.AUG.FLIP = True
    return test
