"""A shard: rows on disk, a training buffer and an IVF index in memory, and the gRPC server.

It owns the vocabulary and never imports `router`. A room imports only earlier ones of this list:
the vocabulary, `wire`, `rows`, `index`, `search`, `storage`, `engine`, `server`. `runtime` imports
none of them.
"""
