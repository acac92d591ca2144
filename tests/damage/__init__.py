"""Damage to every kind of file of two shards, and whether anything of it stays unnoticed.

`stores` makes the directories, `harm` damages one file of a copy, `trial` serves the copy and
judges what is said of it. `python -m tests.damage` runs many, and resumes.
"""
