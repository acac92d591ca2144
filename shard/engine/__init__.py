"""A shard at work: collections, group commit, search batching, background training and compaction.

The room that has threads and locks. No gRPC and no message of the contract enters here.
"""
