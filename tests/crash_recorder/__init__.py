"""Crash states of what programs really do: a recorder of system calls, histories, and their checks.

`recorder` builds the library of `recorder.c` and reads what it recorded; `plan` draws what happens
in a history and what must be there afterwards; `live` does it on a real shard, in a program that is
recorded; `check` opens crash states; `states` draws them. `python -m tests.crash_recorder` runs
many, and resumes.
"""
