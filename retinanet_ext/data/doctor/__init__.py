"""Checks that find faults in the data before training.

In reading order:

- ``record_checks.py``: checks the image and the annotations of every record; refuses, drops or repairs by policy
- ``annotation_faults.py``: what can be wrong with one annotation, and how it is repaired
- ``mask_faults.py``: what can be wrong with a mask
- ``run_lengths.py``: whether a run-length encoded mask decodes, by arithmetic
- ``keypoint_faults.py``: what can be wrong with keypoints, and how they are repaired
- ``tasks.py``: whether a dataset has the masks and keypoints that a config trains
- ``image_probe.py``: checks whether image files exist and open, and reads their sizes
- ``class_ids.py``: reads the class names, and derives the number of classes
- ``keypoint_numbers.py``: derives the number of keypoints
- ``anchor_layout.py``: where the model of a config places its anchors
- ``resized_boxes.py``: boxes after the config's crop and resize
- ``anchor_coverage.py``: which share of the objects has an anchor that fits, by size, ratio and class
- ``anchor_proposal.py``: anchors that fit a dataset better, as an override
- ``coverage_warning.py``: the quick look at anchor coverage when training starts
"""
