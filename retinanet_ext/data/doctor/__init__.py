"""Checks that find faults in the data before training.

In reading order:

- ``record_checks.py``: checks images, sizes, boxes and categories of every record; refuses, drops or clips by policy
- ``image_probe.py``: checks whether image files exist and open, and reads their sizes
- ``class_ids.py``: reads the class names, and derives the number of classes
"""
