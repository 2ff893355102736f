"""`report` and `compare`: pages that explain a run, and two runs beside each other.

In reading order:

- ``after_run.py``: the page at the end of a run
- ``run_report.py``: the page that explains a run
- ``run_folder.py``: reads the folder of a run
- ``metric_history.py``: reads the curves of ``metrics.json``
- ``log_summary.py``: reads warnings, errors and memory from the log
- ``run_ground_truth.py``: finds predictions and their ground truth
- ``detection_statistics.py``: computes what the page says about detections
- ``detection_sections.py``: its sections on detections
- ``worst_images.py``: the images with the most errors, drawn
- ``verification_sections.py``: its sections on verification
- ``run_course.py``: its sections on losses and speed
- ``run_data.py``: its section on the data
- ``run_origin.py``: its sections on config, environment, log and incidents
- ``config_difference.py``: what a run's config changes
- ``run_findings.py``: what stands out, in at most five sentences
- ``comparison_page.py``: the page of `compare`
"""
