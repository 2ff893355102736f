"""Ablation studies: a file names the arms as config overrides, and every arm runs with every seed.

In reading order:

- ``study.py``: a study as a YAML file: base config, arms, seeds, metric, the paper's numbers
- ``unread_keys.py``: overrides that change nothing, because no code reads them
- ``dry_run.py``: the training commands of a study at full size
- ``runner.py``: which runs are still to do, and the lock on their folder
- ``jobs.py``: one run in a process of its own
- ``local_jobs.py``: runs on this machine, several at a time
- ``ray_jobs.py``: runs on a Ray cluster
- ``worker.py``: what the process of a run does
- ``run.py``: one run as a plain function: config in, metrics out
- ``status.py``: how far a run has come, in ``status.json``
- ``results.py``: the runs of a study, read from its folder
- ``statistics.py``: means, intervals, paired differences, order
- ``comparison.py``: the arms side by side
- ``repeat_command.py``: the command that runs a study again
- ``report_sections.py``: the sections of the report
- ``study_report.py``: the report as Markdown, HTML and CSV
- ``trend.py``: the arms under several levels of imbalance
- ``trend_report.py``: the report of a trend
"""
