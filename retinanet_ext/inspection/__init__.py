"""What a user is told about data, runs and the machine: pages, comparisons, causes. Nothing here changes a run.

In reading order:

- ``datasets``: what is wrong with datasets
- ``runs``: pages that explain runs
- ``environment.py``: `doctor env`: what of the machine works, and how to mend the rest
- ``library_probes.py``: the programs that try each library
"""
