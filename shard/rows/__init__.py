"""A shard's rows in memory: ids, positions, tombstones, declared fields, filter columns.

And where rows belong: the slot of an id, the fingerprint of a placement.

No file, no thread and no index enters here.
"""
