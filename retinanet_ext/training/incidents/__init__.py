"""A step whose loss or gradient is not finite: found, examined, saved, replayed, left out or rolled back.

In reading order:

- ``nonfinite_losses.py``: a step with a loss or gradient that is not finite, and the error for it
- ``state_before_step.py``: random numbers and buffers, to compute a step once more
- ``nonfinite_guard.py``: what a run does about it: stop, skip or roll back
- ``diagnosis.py``: computes a failed step once more, to find where it first is not finite
- ``module_trace.py``: watches a model's modules for that
- ``likely_causes.py``: ranks causes by evidence
- ``incident_text.py``: the report of an incident
- ``incident_files.py``: its files
- ``incident_replay.py``: computes a saved incident once more
- ``rollback.py``: back to the last good checkpoint, with a lower learning rate
"""
