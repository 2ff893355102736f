"""FaceNet: one embedding per face, trained by triplets (Schroff et al., "FaceNet", 2015).

In reading order:

- ``facenet.py``: the model: network, pooling, projection, L2 normalisation
- ``pooling.py``: pooling over positions, and the L2 normalisation
- ``selection.py``: which triplets of a batch the loss sees
- ``embedding_losses.py``: the registry of the losses that a config may name; the triplet loss over a batch
- ``training_loss.py``: the loss of a training step: joint batch, warm-up, statistics
- ``joint_batch.py``: the batch of all processes, with gradient
- ``training_monitor.py``: what each step logs; the alarms for batches without triplets and for a collapse
"""

from .embedding_losses import EMBEDDING_LOSS_REGISTRY
from .facenet import FaceNet
from .selection import TRIPLET_SELECTION_REGISTRY, select_triplets

__all__ = ["EMBEDDING_LOSS_REGISTRY", "TRIPLET_SELECTION_REGISTRY", "FaceNet", "select_triplets"]
