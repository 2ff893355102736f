"""The machine that a run is on. No file here imports an engine.

In reading order:

- ``devices.py``: the devices that a config may name
- ``cpu.py``: cores, and how freed memory is kept
- ``atomic_file.py``: files that appear only once they are complete
- ``processes.py``: each process's share of a batch, and the bare model
"""
