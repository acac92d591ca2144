"""A shard's rows in memory: ids, positions, tombstones, declared fields, filter columns, slots.

No file, no thread and no index enters here.
"""
