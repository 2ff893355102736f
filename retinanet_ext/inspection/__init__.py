"""What a user is told about data and runs: pages, comparisons, causes. Nothing here changes a run.

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
- ``environment.py``: `doctor env`: what of the machine works, and how to mend the rest
- ``library_probes.py``: the programs that try each library
- ``findings.py``: what a check found
- ``data_doctor.py``: `doctor data`: examines all datasets of a config
- ``dataset_reading.py``: reads a dataset past its faults
- ``coco_structure.py``: the faults of a COCO file as a whole
- ``image_facts.py``: what is read from image files
- ``record_findings.py``: the faults of records, and what is suspicious
- ``near_duplicates.py``: images that are the same, or nearly
- ``split_findings.py``: leakage between training and test data
- ``data_statistics.py``: counts and sizes
- ``doctor_parts.py``: the places of further parts
- ``doctor_page.py``: the page, with pictures
- ``statistics_section.py``: the statistics on the page
- ``comparison_page.py``: the page of `compare`
- ``repair_plan.py``: what a repaired copy changes in each record
- ``data_repair.py``: a repaired copy of the data
- ``coverage_page.py``: anchor coverage, with anchors that fit better
- ``label_errors.py``: where a model and the ground truth contradict each other
- ``label_error_part.py``: runs the model for that
- ``identity_label_errors.py``: images that look like another identity than their own
"""
