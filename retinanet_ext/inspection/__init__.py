"""What a user is told about data and runs: pages, comparisons, causes. Nothing here changes a run.

In reading order:

- ``findings.py``: what a check found
- ``doctor_parts.py``: what `doctor data` examines beyond records: the places of further parts
"""
