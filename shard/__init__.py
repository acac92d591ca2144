"""One shard: rows on disk, a training buffer and an IVF index in memory, and its gRPC edge.

The lower layer; it owns the vocabulary and never imports `router`. Rooms import only rooms above
them: vocabulary, `wire`, `rows`, `index`, `search`, `storage`, `engine`, `server`; `runtime`
beside.
"""
