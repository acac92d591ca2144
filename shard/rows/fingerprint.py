"""The fingerprint of a topology: which leaf shards a server reaches, in sixteen digits. Pure.

A caller sends the fingerprint of the server that it means with every call. An address may come to
belong to another server at any moment, and an answer from the wrong shard looks like any other.
"""

from __future__ import annotations

import xxhash

from vectorshard.shard.types import Topology


def fingerprint_of(topology: Topology) -> str:
    """Return a digest of the cluster, the placement and the leaf shards with their slots.

    The role does not matter, nor does the order of the shards.
    """
    shards = sorted((shard.shard, shard.slots) for shard in topology.shards)
    identity = (topology.cluster, topology.placement_epoch, topology.shards_total, shards)
    return xxhash.xxh3_64_hexdigest(repr(identity).encode())
