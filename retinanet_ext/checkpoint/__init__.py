"""Weights from files. Loading a file never runs code from it.

In reading order:

- ``weights.py``: loads weights into a model, and reports what was and what was not loaded
- ``array_pickle.py``: reads pickles of plain arrays, as in Detectron2's model zoo; imports no engine
"""
