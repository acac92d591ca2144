"""Fan-out and merge over shards, wherever they live: placement, catalogue, partial writes.

No gRPC enters here.
"""
