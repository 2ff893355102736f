"""The pictures of the Focal Loss paper, from the project's own losses, models and measurements.

In reading order:

- ``loss_curves.py``: Figures 1, 5 and 6: losses and their derivatives
- ``loss_distribution.py``: Figure 4: how the loss of a trained model is distributed over its entries
- ``timed_models.py``: Figure 2 and Table 1e: accuracy against measured milliseconds
- ``picture_style.py``: the style that all pictures share
"""
