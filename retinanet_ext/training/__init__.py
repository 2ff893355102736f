"""One run, from the command line to its last checkpoint.

In reading order:

- ``arguments.py``: the flags of the command line
- ``command.py``: the command: exit codes, one message for every error
- ``stops.py``: SIGTERM, SIGINT, the time limit
- ``launch.py``: what each process of a run does, and how the processes are started
- ``ranks.py``: the processes that one command starts, and their end
- ``meeting.py``: the processes of a job find each other, and exchange a first number
- ``rank_channel.py``: a line between them: who stops, who failed, who is gone
- ``run_errors.py``: an error as one message, its traceback in the log
- ``trainer.py``: the engine's trainer with checked data, reports and records
- ``run_hooks.py``: what runs around its iterations
- ``stop_hook.py``: stops after a step or in an evaluation; goes on where a checkpoint was written
- ``metrics_file.py``: `metrics.json`, the same after a resume
- ``identity_loaders.py``: its loaders for data of identities
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
