"""A trained model in use.

In reading order:

- ``predictor.py``: detections for a stream of images, in batches
- ``threaded_map.py``: prepares images in threads while the model works
- ``fast_copy.py``: a faster copy of a model, for inference only
- ``tta.py``: test-time augmentation for dense detectors
"""
