"""What a run finds on its machine. No file here knows an engine.

In reading order:

- ``devices.py``: the devices that a config may name
- ``cpu.py``: cores, and how freed memory is kept
- ``processes.py``: how many processes train together, and each one's share of a batch
"""
