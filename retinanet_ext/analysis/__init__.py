"""The pictures of the Focal Loss paper, from the project's own losses, models and measurements.

In reading order:

- ``loss_curves.py``: Figures 1, 5 and 6: losses and their derivatives
- ``loss_distribution.py``: Figure 4: how the loss of a trained model is distributed over its entries
- ``imbalance_report.py``: its picture, curves and table
- ``timed_models.py``: Figure 2 and Table 1e: accuracy against measured milliseconds
- ``speed_accuracy_report.py``: their picture, values and table
- ``picture_style.py``: the style that all pictures share
"""
