"""A trained model in use.

In reading order:

- ``trained_model.py``: :func:`load`, from the folder of a run to a predictor
- ``predictor.py``: detections for images, lists and streams, in batches
- ``class_thresholds.py``: a score threshold for each class: given, of a file, or of the model
- ``embedder.py``: embeddings of faces for images, lists and streams
- ``calibration_pairs.py``: the pairs of images that `retinanet-ext calibrate` compares
- ``result.py``: what a predictor returns for an image: Detectron2's Instances, pictures, records
- ``identification.py``: names for detections, by the nearest embedding of a gallery
- ``object_embedder.py``: the embedding of the one object in each photo, to fill a gallery
- ``fingerprint.py``: what identifies the weights of a model
- ``sahi_model.py``: a predictor for SAHI's sliced prediction of large images
- ``threaded_map.py``: prepares images in threads while the model works
- ``file_predictions.py``: predicts files and folders, for `retinanet-ext predict`
- ``file_embeddings.py``: embeds files, for `retinanet-ext gallery`, `identify` and `cluster`
- ``sources.py``: the images and videos below the paths that a user gives
- ``predictions_json.py``: detections as a COCO-format file
- ``progress_report.py``: how far a long prediction is
- ``encoded_mask_output.py``: masks as run lengths while a model is evaluated
- ``run_face_detector.py``: the detector of a run as a detector of faces
- ``fast_copy.py``: a faster copy of a model, for inference only
- ``tta.py``: test-time augmentation for dense detectors
"""
