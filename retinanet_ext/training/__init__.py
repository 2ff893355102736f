"""One run, from the command line to its last checkpoint.

In reading order:

- ``arguments.py``: the flags of the command line
- ``command.py``: the command: exit codes, one message for every error
- ``stops.py``: SIGTERM, SIGINT, the time limit
- ``launch.py``: what each process of a run does, and how the processes are started
- ``config_linter.py``: finds keys that nothing in a run reads
- ``ranks.py``: the processes that one command starts, and their end
- ``meeting.py``: the processes of a job find each other, and exchange a first number
- ``rank_channel.py``: a line between them: who stops, who failed, who is gone
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
- ``running_statistics.py``: averages batch norms' running statistics over processes
- ``process_checks.py``: refuses jobs that cannot work, before they start
- ``progress_line.py``: progress on a terminal and in a log
- ``compact_evaluator.py``: Detectron2's COCO evaluator with this package's metrics
- ``overlapped_evaluation.py``: evaluates one batch while the model computes the next
- ``provenance.py``: what a checkpoint says about config, code, data and licenses
- ``run_lock.py``: one training at a time in an output folder
- ``run_record.py``: `run.json` and `results.json`
- ``threshold_storage.py``: operating thresholds of an evaluation, into the checkpoint
- ``explained_results.py``: reasons and confidence intervals in `results.json`
"""
