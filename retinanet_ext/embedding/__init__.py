"""FaceNet: one embedding per face, trained by triplets (Schroff et al., "FaceNet", 2015).

In reading order:

- ``facenet.py``: the model: network, pooling, projection, L2 normalisation
- ``pooling.py``: pooling over positions, and the L2 normalisation
- ``embedding_losses.py``: the registry of the losses that a config may name; the triplet loss over a batch
- ``codes.py``: an embedding as 128 bytes
- ``search.py``: exact nearest neighbours in bounded memory
- ``gallery.py``: known people on disk: add, remove, search
- ``gallery_file.py``: the gallery's file, safe against a kill and a second writer
- ``clustering.py``: groups of images of one person each, and how well they fit labels
- ``contact_sheet.py``: a picture of groups of images
"""

from .embedding_losses import EMBEDDING_LOSS_REGISTRY
from .facenet import FaceNet

__all__ = ["EMBEDDING_LOSS_REGISTRY", "FaceNet"]
