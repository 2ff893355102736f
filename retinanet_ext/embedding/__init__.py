"""FaceNet: one embedding per face, trained by triplets (Schroff et al., "FaceNet", 2015).

In reading order:

- ``facenet.py``: the model: network, pooling, projection, L2 normalisation
- ``network_layers.py``: layers of the paper's networks: L2 pooling, local response normalisation, maxout
- ``nn1.py``: NN1, the network of Zeiler & Fergus with 1x1 convolutions
- ``inception.py``: NN2, NN3, NN4, NNS1 and NNS2, the Inception networks
- ``network_cost.py``: parameters and multiply-adds of a network, row by row
- ``pooling.py``: pooling over positions, and the L2 normalisation
- ``joint_batch.py``: the embeddings of all processes as one batch
- ``embedding_losses.py``: the registry of the losses that a config may name; the triplet loss over a batch
"""

from .embedding_losses import EMBEDDING_LOSS_REGISTRY
from .facenet import FaceNet

# Importing these two modules registers their builders.
from .inception import Inception
from .nn1 import NN1

__all__ = ["EMBEDDING_LOSS_REGISTRY", "NN1", "FaceNet", "Inception"]
