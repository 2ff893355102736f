"""Checks that find faults in the data before training.

In reading order:

- ``record_checks.py``: checks the image and the annotations of every record; refuses, drops or repairs by policy
- ``annotation_faults.py``: what can be wrong with one annotation, and how it is repaired
- ``image_probe.py``: checks whether image files exist and open, and reads their sizes
- ``class_ids.py``: reads the class names, and derives the number of classes
"""
