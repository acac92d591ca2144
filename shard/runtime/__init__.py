"""Runtime tuning of a server's process: memory allocator, numpy's threads, logs.

Only code that starts a process imports it.
"""
