"""COCO's metrics of boxes, masks and keypoints, from predictions and a ground truth. Imports no engine.

In reading order:

- ``ground_truth.py``: the ground truth that predictions are compared with, and what it can be used for
- ``coco_predictions.py``: the predictions for an image as arrays and run lengths, and in COCO's format
- ``coco_tasks.py``: from the predictions for all images to results and the predictions' file
- ``coco_metrics.py``: precision and recall, by faster-coco-eval or pycocotools
- ``coco_columns.py``: ground truth and predictions as the numbered annotations that both libraries take
- ``coco_report.py``: logs tables, and why a number is missing
"""
