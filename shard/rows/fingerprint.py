"""The fingerprint of a topology: sixteen digits for the leaf shards that a server reaches. Pure.

A caller sends the fingerprint of the intended server with every call. An address may be reassigned
to another server at any moment, and the results of a wrong shard look like any others.
"""

from __future__ import annotations

import xxhash

from vectorshard.shard.descriptions import Topology


def fingerprint_of(topology: Topology) -> str:
    """Return a digest of the cluster, the placement and the leaf shards with their slots.

    The role does not matter, nor does the order of the shards.
    """
    shards = sorted((shard.shard, shard.slots) for shard in topology.shards)
    identity = (topology.cluster, topology.placement_epoch, topology.shards_total, shards)
    return xxhash.xxh3_64_hexdigest(repr(identity).encode())
