"""The config: its keys, their legal values, and how it is loaded.

In reading order:

- ``keys.py``: the keys that this package adds, each with its default and its meaning
- ``embedding_keys.py``: those of FaceNet
- ``reliability_keys.py``: those for faults, checkpoints and stops
- ``loading.py``: `load_config`: builds a config from defaults, a file, overrides and the training data
- ``batch_scaling.py``: adapts learning rate and schedule to another batch size
- ``legal_values.py``: keys that take one of a few values
- ``key_reads.py``: which keys a model reads
- ``class_count.py``: which keys hold the number of classes and the thresholds of a model
- ``yaml_files.py``: YAML with inheritance and without code, for both engines
- ``plain_values.py``: what such a file may hold
"""
