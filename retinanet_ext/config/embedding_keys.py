"""The keys of FaceNet, each with its default and its meaning."""

from retinanet_ext.d2 import CfgNode as CN


def add_embedding_keys(cfg: CN) -> None:
    """Add the keys of embeddings to ``cfg``, in place."""
    _add_network_keys(cfg)
    _add_loss_keys(cfg)
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
    # Name of the loss in EMBEDDING_LOSS_REGISTRY.
    cfg.MODEL.EMBEDDING.LOSS = CN()
    cfg.MODEL.EMBEDDING.LOSS.NAME = "triplet"
    # triplet: alpha, by how much a negative must be farther than the positive, in squared distance.
    cfg.MODEL.EMBEDDING.LOSS.MARGIN = 0.2
    # triplet: how triplets are selected within the batch: "semi_hard" (the paper), "batch_hard" or "batch_all".
    cfg.MODEL.EMBEDDING.LOSS.SELECTION = "semi_hard"
    # Number of identities in the training data; filled in from them. Only losses that classify identities read it.
    cfg.MODEL.EMBEDDING.NUM_IDENTITIES = 0


def _add_input_keys(cfg: CN) -> None:
    cfg.INPUT.FACE = CN()
    # Height and width of the network's input in pixels.
    cfg.INPUT.FACE.SIZE = [96, 96]
    # DATALOADER: images of each identity in a batch; SOLVER.IMS_PER_BATCH must be a multiple of it.
    cfg.DATALOADER.IMAGES_PER_IDENTITY = 4
    # "SGD", "AdaGrad" (the FaceNet paper) or "AdamW".
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
