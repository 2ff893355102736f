"""FaceNet: one embedding per face, trained by triplets (Schroff et al., "FaceNet", 2015).

In reading order:

- ``facenet.py``: the model: network, pooling, projection, L2 normalisation
- ``network_layers.py``: layers of the paper's networks: L2 pooling, local response normalisation, maxout
- ``nn1.py``: NN1, the network of Zeiler & Fergus with 1x1 convolutions
- ``inception.py``: NN2, NN3, NN4, NNS1 and NNS2, the Inception networks
- ``network_cost.py``: parameters and multiply-adds of a network, row by row
- ``pooling.py``: pooling over positions, and the L2 normalisation
- ``selection.py``: which triplets of a batch the loss sees
- ``embedding_losses.py``: the registry of the losses that a config may name; the triplet loss over a batch
- ``training_loss.py``: the loss of a training step: joint batch, warm-up, statistics
- ``joint_batch.py``: the batch of all processes, with gradient
- ``training_monitor.py``: what each step logs; the alarms for batches without triplets and for a collapse
- ``harmonic.py``: HarmonicFaceNet, a new model whose embeddings can be compared with an older one's
- ``harmonic_loss.py``: its loss, over triplets that mix the embeddings of both
- ``harmonic_verification.py``: verification by the older model alone, and across the two
- ``codes.py``: an embedding as 128 bytes
- ``search.py``: exact nearest neighbours in bounded memory
- ``gallery.py``: known people on disk: add, remove, search
- ``gallery_file.py``: the gallery's file, safe against a kill and a second writer
- ``clustering.py``: groups of images of one person each, and how well they fit labels
- ``contact_sheet.py``: a picture of groups of images
- ``face_input.py``: from an image to the network's input: finds the face, crops and resizes it
- ``face_detectors.py``: OpenCV's cascade as a detector of faces
- ``pairs.py``: pairs of images for verification: read, written, drawn, found in a dataset
- ``pair_drawing.py``: draws pairs at random
- ``verification.py``: same or different: accuracy over folds, VAL at a FAR, for anybody's distances
- ``verification_reasons.py``: why a metric of verification is undefined
- ``roc.py``: accepted pairs by threshold: ROC, AUC, EER
- ``calibration.py``: the threshold for a false-accept rate that the user names
- ``verification_evaluator.py``: the evaluator of a dataset's pairs
- ``verification_page.py``: its page: ROC, distances, folds, hardest mistakes
"""

from .embedding_losses import EMBEDDING_LOSS_REGISTRY
from .facenet import FaceNet
from .harmonic import HarmonicFaceNet

# Importing these two modules registers their builders.
from .inception import Inception
from .nn1 import NN1
from .selection import TRIPLET_SELECTION_REGISTRY, select_triplets

__all__ = [
    "EMBEDDING_LOSS_REGISTRY",
    "NN1",
    "TRIPLET_SELECTION_REGISTRY",
    "FaceNet",
    "HarmonicFaceNet",
    "Inception",
    "select_triplets",
]
