"""The gRPC edge that serves any Shard: service, streams, admission control, status codes, metrics.

No vector is scored here, and nothing is written to disk.
"""
