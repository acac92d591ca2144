"""The gRPC edge that serves any Shard: service, streams, admission control, status codes, metrics.

This package scores no vector and writes nothing to disk.
"""
