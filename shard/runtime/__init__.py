"""Tuning of the process that a shard runs in: memory allocator, numpy's threads, logs.

Only what starts a process imports it.
"""
