"""`doctor data`: what is wrong with datasets, and a repaired copy.

In reading order:

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
- ``coverage_page.py``: anchor coverage, with anchors that fit better
- ``label_errors.py``: where a model and the ground truth contradict each other
- ``label_error_part.py``: runs the model for that
- ``identity_label_errors.py``: images that look like another identity than their own
- ``doctor_page.py``: the page, with pictures
- ``statistics_section.py``: the statistics on the page
- ``repair_plan.py``: what a repaired copy changes in each record
- ``data_repair.py``: a repaired copy of the data
"""
