"""A shard in another process: connection, circuit breaker, retry policy, metrics.

Rows, slots and merging are none of its business.
"""
