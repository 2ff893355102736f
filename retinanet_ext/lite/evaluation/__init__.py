"""From predictions to metrics. The metrics themselves are in ``retinanet_ext.evaluation``.

In reading order:

- ``evaluator.py``: the evaluator interface, and the loop that runs a model over a data set
- ``coco_evaluation.py``: COCO average precision
- ``coco_ground_truth.py``: the ground truth as a COCO dict
- ``print_csv.py``: logs results as CSV lines, and compares them with expected values
"""

from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from .print_csv import print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
