"""FaceNet: one embedding per face, trained by triplets (Schroff et al., "FaceNet", 2015).

In reading order:

- ``facenet.py``: the model: network, pooling, projection, L2 normalisation
- ``pooling.py``: pooling over positions, and the L2 normalisation
- ``joint_batch.py``: the embeddings of all processes as one batch
- ``embedding_losses.py``: the registry of the losses that a config may name; the triplet loss over a batch
"""

from .embedding_losses import EMBEDDING_LOSS_REGISTRY
from .facenet import FaceNet

__all__ = ["EMBEDDING_LOSS_REGISTRY", "FaceNet"]
