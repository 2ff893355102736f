"""One run, from the command line to its last checkpoint.

In reading order:

- ``arguments.py``: the flags of the command line
- ``launch.py``: what each process of a run does, and how the processes are started
- ``trainer.py``: the engine's trainer with checked data, reports and records
- ``run_hooks.py``: what runs around its iterations
- ``identity_loaders.py``: its loaders for data of identities
- ``bad_images.py``: counts images that cannot be read, and stops at a budget
- ``average_weights.py``: a moving average of the weights, saved and evaluated beside them
- ``early_stop.py``: ends a run whose metric no longer improves
- ``optimizers.py``: optimizers besides the engine's SGD
- ``step.py``: one training step, the same on both engines
- ``frozen_parts.py``: refuses frozen layers without trained weights
- ``first_model.py``: harmonic embeddings: loads the older model, and starts the newer one
- ``nonfinite_losses.py``: the error for a loss that is not finite
- ``running_statistics.py``: averages batch norms' running statistics over processes
- ``process_checks.py``: refuses jobs that cannot work, before they start
- ``progress_line.py``: progress on a terminal and in a log
- ``compact_evaluator.py``: Detectron2's COCO evaluator with this package's metrics
- ``overlapped_evaluation.py``: evaluates one batch while the model computes the next
- ``run_record.py``: `run.json` and `results.json`
"""
