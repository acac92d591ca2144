"""A shard in another process: connection, circuit breaker, retry policy, metrics.

No placement, merging or scoring enters here.
"""
