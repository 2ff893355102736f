"""COCO's metrics of boxes, masks and keypoints, from predictions and a ground truth. Imports no engine.

In reading order:

- ``ground_truth.py``: the ground truth that predictions are compared with, and what it can be used for
- ``coco_predictions.py``: the predictions for an image as arrays and run lengths, and in COCO's format
- ``protocol.py``: what is evaluated, and how
- ``coco_tasks.py``: from the predictions for all images to results and the predictions' file
- ``coco_metrics.py``: precision and recall, by faster-coco-eval or pycocotools
- ``coco_columns.py``: ground truth and predictions as the numbered annotations that both libraries take
- ``coco_report.py``: logs tables, and why a number is missing
- ``metric_reasons.py``: why a metric is undefined
- ``evaluation_record.py``: `evaluation.json`: the metrics of an evaluation, and these reasons

What explains a result, from the files of an evaluation:

- ``ground_truth_file.py``: which ground truth an evaluation used, beside the predictions
- ``evaluated_dataset.py``: one dataset with its ground truth and the predictions for it
- ``coco_content.py``: checks of a COCO file that a user names
- ``result_files.py``: reads it from the folder of an evaluation, or from two COCO files
- ``overlaps.py``: IoU of boxes and masks, OKS of keypoints
- ``image_matches.py``: COCO's greedy matching, kept for all that follows
- ``average_precision.py``: AP from these matches, for images that count any number of times
- ``bootstrap.py``: confidence intervals, by drawing images with replacement
- ``score_curves.py``: precision, recall and F1 by score threshold
- ``operating_thresholds.py``: the score threshold of each class: best F1, or a target precision
- ``similarities.py``: overlaps of chosen predictions with objects of any class
- ``confusion_matrix.py``: which classes are taken for which others
- ``error_kinds.py``: kinds of errors, and what AP50 each costs
- ``score_calibration.py``: reliability diagram and expected calibration error
- ``image_counts.py``: hits and errors of each image
- ``paired_comparison.py``: two sets of predictions for the same images
- ``paired_verification.py``: two verifications of the same pairs
"""
