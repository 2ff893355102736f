"""The keys of FaceNet, each with its default and its meaning."""

from retinanet_ext.d2 import CfgNode as CN


def add_embedding_keys(cfg: CN) -> None:
    """Add the keys of embeddings to ``cfg``, in place."""
    _add_network_keys(cfg)
    _add_loss_keys(cfg)
    _add_harmonic_keys(cfg)
    _add_input_keys(cfg)
    _add_roi_keys(cfg)


def _add_network_keys(cfg: CN) -> None:
    cfg.MODEL.EMBEDDING = CN()
    # Numbers per embedding.
    cfg.MODEL.EMBEDDING.DIM = 128
    # Name of the backbone's feature map that is pooled; if empty, the coarsest one.
    cfg.MODEL.EMBEDDING.IN_FEATURE = ""
    # Pooling over the positions of that map: "avg" or "max".
    cfg.MODEL.EMBEDDING.POOL = "avg"
    # Networks of the FaceNet paper (NN1 to NNS2): normalisation after each convolution, as MODEL.RESNETS.NORM. If
    # empty, convolutions have biases, and local response normalisation stands where the paper has it. "GN" takes at
    # most 32 groups: the largest number that divides 32 and the layer's channels.
    cfg.MODEL.FACENET = CN()
    cfg.MODEL.FACENET.NORM = ""


def _add_loss_keys(cfg: CN) -> None:
    # Name of the loss in EMBEDDING_LOSS_REGISTRY: "triplet"; "softmax" or "cosface", which classify the identities of
    # the training data (pip install retinanet_ext[embedding]).
    cfg.MODEL.EMBEDDING.LOSS = CN()
    cfg.MODEL.EMBEDDING.LOSS.NAME = "triplet"
    # triplet: alpha, by how much a negative must be farther than the positive, in squared distance.
    cfg.MODEL.EMBEDDING.LOSS.MARGIN = 0.2
    # triplet: how triplets are selected within the batch of all processes: "semi_hard" (the paper), "batch_hard" or
    # "batch_all", or a name in TRIPLET_SELECTION_REGISTRY.
    cfg.MODEL.EMBEDDING.LOSS.SELECTION = "semi_hard"
    # softmax, cosface: cosines are multiplied by it. 30 as in "Additive margin softmax" (Wang et al., 2018).
    cfg.MODEL.EMBEDDING.LOSS.SCALE = 30.0
    # cosface: subtracted from the cosine of the true identity.
    cfg.MODEL.EMBEDDING.LOSS.COSINE_MARGIN = 0.35
    cfg.MODEL.EMBEDDING.WARMUP = CN()
    # Name of a loss for the first iterations, before LOSS.NAME takes over; if empty, none. A new network that collapses
    # under the triplet loss may not collapse under "softmax".
    cfg.MODEL.EMBEDDING.WARMUP.LOSS = ""
    # Number of these iterations.
    cfg.MODEL.EMBEDDING.WARMUP.ITERS = 1000
    # Number of identities in the training data; filled in from them. Only losses that classify identities read it.
    cfg.MODEL.EMBEDDING.NUM_IDENTITIES = 0


def _add_harmonic_keys(cfg: CN) -> None:
    # META_ARCHITECTURE HarmonicFaceNet: an earlier model, v1, whose embeddings those of this model, v2, shall be
    # comparable with. V1 is the folder of its run or its config file.
    cfg.MODEL.EMBEDDING.HARMONIC = CN()
    cfg.MODEL.EMBEDDING.HARMONIC.V1 = ""
    # Checkpoint of v1; if empty, the best or the final one of its run.
    cfg.MODEL.EMBEDDING.HARMONIC.V1_WEIGHTS = ""
    # The paper's two stages: "embedding" trains only the projection, from random values, on the fixed network of
    # MODEL.WEIGHTS, a v2 that was trained by itself; "network" trains everything, from the first stage's checkpoint.
    cfg.MODEL.EMBEDDING.HARMONIC.STAGE = "embedding"


def _add_input_keys(cfg: CN) -> None:
    # From an image to the network's input; embedding/face_input.py has the operations in their order.
    cfg.INPUT.FACE = CN()
    # Height and width of the network's input in pixels.
    cfg.INPUT.FACE.SIZE = [96, 96]
    # Where the face is: "" takes the centre of each image; "cascade" is OpenCV's Haar cascade for frontal faces; else
    # the folder of a run of this package, whose detections of any class count as faces. Images without a detected face
    # are counted, and their centre is taken.
    cfg.INPUT.FACE.DETECTOR = ""
    # Share of the image's height and width that the centre crop has.
    cfg.INPUT.FACE.CENTER_CROP = 1.0
    # Added on each side of a detected face, as a share of the longer side of its box.
    cfg.INPUT.FACE.MARGIN = 0.1
    # Crops of more pixels are shrunk to about this number before the resize (table 4 of the paper); 0: not shrunk.
    cfg.INPUT.FACE.PIXELS = 0
    # The shrunk crop is written as JPEG of this quality, 1 to 100, and read again (table 4 of the paper); 0: no JPEG.
    cfg.INPUT.FACE.JPEG_QUALITY = 0
    # Augmentation in training, besides INPUT.RANDOM_FLIP; up to these bounds all values are equally likely. By which
    # share of its sides the crop is shifted.
    cfg.INPUT.FACE.SHIFT_JITTER = 0.0
    # By which share the sides of the crop change.
    cfg.INPUT.FACE.SCALE_JITTER = 0.0
    # Degrees by which the crop is rotated.
    cfg.INPUT.FACE.ROTATION_JITTER = 0.0
    # Share by which the contrast changes, and share of 0..255 by which the brightness changes.
    cfg.INPUT.FACE.LIGHT_JITTER = 0.0
    # Images of each identity in a training batch of FaceNet, from 2; a batch then has (SOLVER.IMS_PER_BATCH -
    # RANDOM_NEGATIVES) / IMAGES_PER_IDENTITY identities over all processes. 0 leaves the order of the images to
    # DATALOADER.SAMPLER_TRAIN, which suits losses that classify identities.
    cfg.DATALOADER.IMAGES_PER_IDENTITY = 4
    # Images in such a batch that are drawn from all identities besides (the paper's random negatives).
    cfg.DATALOADER.RANDOM_NEGATIVES = 0
    # Identities in DATASETS.TRAIN and in DATASETS.TEST at once: an error, or with True a warning.
    cfg.DATASETS.ALLOW_SHARED_IDENTITIES = False
    # Pairs with an image that the dataset lacks: "error" names the image and stops; "count" leaves these pairs out, and
    # the result says how many.
    cfg.DATASETS.ON_MISSING_PAIR = "error"
    # "SGD", "AdaGrad" (the FaceNet paper) or "AdamW", for any model. AdaGrad and AdamW do not read SOLVER.MOMENTUM and
    # NESTEROV.
    cfg.SOLVER.OPTIMIZER = "SGD"


def _add_roi_keys(cfg: CN) -> None:
    # InstanceRetinaNet and MaskRCNN (with StandardROIHeads): an embedding for each detected object, trained on the
    # identities in the annotations. MODEL.EMBEDDING has its DIM, POOL and LOSS.
    cfg.MODEL.EMBEDDING_ON = False
    cfg.MODEL.ROI_EMBEDDING_HEAD = CN()
    # Name of the head in ROI_EMBEDDING_HEAD_REGISTRY.
    cfg.MODEL.ROI_EMBEDDING_HEAD.NAME = "ConvEmbeddingHead"
    # Pooling of the features of an RoI, as for the other heads.
    cfg.MODEL.ROI_EMBEDDING_HEAD.POOLER_TYPE = "ROIAlignV2"
    # Rows and columns of an RoI's features.
    cfg.MODEL.ROI_EMBEDDING_HEAD.POOLER_RESOLUTION = 14
    # Samples per bin, in each direction; 0: as many as the bin has pixels of the map.
    cfg.MODEL.ROI_EMBEDDING_HEAD.POOLER_SAMPLING_RATIO = 0
    # Number of 3x3 convolutions, and the output channels of each.
    cfg.MODEL.ROI_EMBEDDING_HEAD.NUM_CONV = 4
    cfg.MODEL.ROI_EMBEDDING_HEAD.CONV_DIM = 256
    # Norm after each convolution, as MODEL.ROI_MASK_HEAD.NORM.
    cfg.MODEL.ROI_EMBEDDING_HEAD.NORM = ""
    # Factor of "loss_embedding".
    cfg.MODEL.ROI_EMBEDDING_HEAD.LOSS_WEIGHT = 1.0
    # In training, at most this many RoIs of an object take part in the loss. Two boxes of one object are a positive
    # pair, like a shifted crop; with 1 all positives are different objects.
    cfg.MODEL.ROI_EMBEDDING_HEAD.ROIS_PER_OBJECT = 2
