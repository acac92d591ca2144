"""One shard: rows on disk, a training buffer and an IVF index in memory, and its gRPC edge.

The lower layer of the house; it owns the vocabulary and never imports `router`.
"""

from shard.protocol import Shard as Shard
