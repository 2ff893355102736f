"""The keys of FaceNet, each with its default and its meaning."""

from retinanet_ext.d2 import CfgNode as CN


def add_embedding_keys(cfg: CN) -> None:
    """Add the keys of embeddings to ``cfg``, in place."""
    _add_network_keys(cfg)
    _add_loss_keys(cfg)
    _add_input_keys(cfg)


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
    # Name of a loss for the first ITERS iterations, before LOSS.NAME takes over; if empty, none. A new network that
    # collapses under the triplet loss does not under "softmax".
    cfg.MODEL.EMBEDDING.WARMUP = CN()
    cfg.MODEL.EMBEDDING.WARMUP.LOSS = ""
    cfg.MODEL.EMBEDDING.WARMUP.ITERS = 1000
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
