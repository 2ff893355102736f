"""One run, from the command line to its last checkpoint.

In reading order:

- ``arguments.py``: the flags of the command line
- ``command.py``: the command: exit codes, one message for every error
- ``stops.py``: SIGTERM, SIGINT, the time limit
- ``launch.py``: what each process of a run does, and how the processes are started
- ``config_linter.py``: finds keys that nothing in a run reads
- ``run_errors.py``: an error as one message, its traceback in the log
- ``trainer.py``: the engine's trainer with checked data, reports and records
- ``run_hooks.py``: what runs around its iterations
- ``stop_hook.py``: stops after a step or in an evaluation; goes on where a checkpoint was written
- ``metrics_file.py``: `metrics.json`, the same after a resume
- ``best_checkpoints.py``: keeps the checkpoints with the best values of a metric
- ``finite_weights.py``: stops all processes before a checkpoint with weights that are not finite
- ``identity_loaders.py``: its loaders for data of identities
- ``bad_images.py``: counts images that cannot be read, and stops at a budget
- ``average_weights.py``: a moving average of the weights, saved and evaluated beside them
- ``early_stop.py``: ends a run whose metric no longer improves
- ``optimizers.py``: optimizers besides the engine's SGD
- ``step.py``: one training step, the same on both engines
- ``frozen_parts.py``: refuses frozen layers without trained weights
- ``first_model.py``: harmonic embeddings: loads the older model, and starts the newer one
- ``progress_line.py``: progress on a terminal and in a log
- ``compact_evaluator.py``: Detectron2's COCO evaluator with this package's metrics
- ``overlapped_evaluation.py``: evaluates one batch while the model computes the next
- ``provenance.py``: what a checkpoint says about config, code, data and licenses
- ``run_lock.py``: one training at a time in an output folder
- ``run_record.py``: `run.json` and `results.json`
- ``threshold_storage.py``: operating thresholds of an evaluation, into the checkpoint
- ``explained_results.py``: reasons and confidence intervals in `results.json`

The packages ``incidents`` (losses and gradients that are not finite) and ``processes`` (several processes) have lists
of their own.
"""
