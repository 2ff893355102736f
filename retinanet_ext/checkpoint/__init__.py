"""Weights from files. Loading a file never runs code from it.

In reading order:

- ``weights.py``: loads weights into a model, and reports what was and what was not loaded
- ``checked_checkpointer.py``: the engine's checkpointer with the reader of the next file
- ``checkpoint_entries.py``: entries beside the weights, such as a calibration
- ``checkpoint_file.py``: reads checkpoint files of all kinds; imports no engine
- ``array_pickle.py``: reads pickles of plain arrays, as in Detectron2's model zoo; imports no engine
"""
