"""Bytes of vectorshard.v1 to numpy and back: the only importer of the contract's messages.

A server decodes requests and encodes responses here; a client does the reverse. `rpcs` is the table
of RPCs; a codec module has the messages of some of them. Decoders validate a request as far as it
describes itself: shapes, counts, ids, ranges, limits. Checks that need the collection (its dim, its
id type, NaN, norms) are in shard.engine. No grpc and no I/O enters here.
"""
