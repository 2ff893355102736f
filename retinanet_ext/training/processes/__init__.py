"""The processes of a job: how they start, meet, agree and end together.

In reading order:

- ``ranks.py``: the processes that one command starts, and their end
- ``meeting.py``: the processes of a job find each other, and exchange a first number
- ``rank_channel.py``: a line between them: who stops, who failed, who is gone
- ``process_checks.py``: refuses jobs that cannot work, before they start
- ``running_statistics.py``: averages batch norms' running statistics over processes
"""
