"""What a user is told about data and runs: pages, comparisons, causes. Nothing here changes a run.

In reading order:

- ``environment.py``: `doctor env`: what of the machine works, and how to mend the rest
- ``library_probes.py``: the programs that try each library
"""
