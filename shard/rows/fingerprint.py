"""The fingerprint of a topology: sixteen digits for the leaf shards that a server reaches. Pure.

A caller sends the fingerprint of the intended server with every call. An address may be reassigned
to another server at any moment, and the results of a wrong shard look like any others.
"""

from __future__ import annotations

import xxhash

from vectorshard.shard.descriptions import Topology


def fingerprint_of(topology: Topology, *, with_sessions: bool = True) -> str:
    """Return a digest of the cluster, the placement and the leaf shards with their slots.

    Also of their sessions, which change when a shard starts: a caller that compared the shards with
    each other has to do so again. Routers of earlier releases send the digest without. The role
    does not matter, nor does the order of the shards.
    """
    shards = sorted((shard.shard, shard.slots) for shard in topology.shards)
    identity: tuple[object, ...] = (
        topology.cluster,
        topology.placement_epoch,
        topology.shards_total,
        shards,
    )
    sessions = sorted((shard.shard, shard.session) for shard in topology.shards if shard.session)
    if sessions and with_sessions:
        identity = (*identity, sessions)
    return xxhash.xxh3_64_hexdigest(repr(identity).encode())
