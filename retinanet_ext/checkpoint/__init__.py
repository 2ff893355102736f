"""Weights from files. Loading a file never runs code from it.

In reading order:

- ``weights.py``: loads weights into a model, and reports what was and what was not loaded
- ``checked_checkpointer.py``: the engine's checkpointer with the readers and writers of the next files
- ``load_report.py``: what of a file arrived in a model, and what must not arrive there
- ``newest_checkpoint.py``: the file to resume from, if the newest one is damaged; imports no engine
- ``checkpoint_entries.py``: entries beside the weights, such as a calibration
- ``checkpoint_file.py``: reads checkpoint files of all kinds; imports no engine
- ``checkpoint_writing.py``: writes them whole, with a checksum, or not at all; imports no engine
- ``file_checksum.py``: finds damaged files; imports no engine
- ``array_pickle.py``: reads pickles of plain arrays, as in Detectron2's model zoo; imports no engine
"""
