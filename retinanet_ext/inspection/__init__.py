"""What a user is told about data and runs: pages, comparisons, causes. Nothing here changes a run.

In reading order:

"""
