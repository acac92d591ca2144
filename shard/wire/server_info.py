"""GetServerInfo: a server's version, topology and limits."""

from __future__ import annotations

from vectorshard.shard import descriptions
from vectorshard.shard.config import SLOTS_TOTAL, Limits
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.wire.primitives import ROLES, copied, parse
from vectorshard.v1 import vectorshard_pb2 as v1


def encode_get_server_info_request() -> bytes:
    """Request the version, topology and limits."""
    return v1.GetServerInfoRequest().SerializeToString()


def decode_get_server_info_request(payload: bytes) -> None:
    """Check that the bytes parse."""
    parse(v1.GetServerInfoRequest, payload)


def encode_get_server_info_response(
    version: str, topology: descriptions.Topology, limits: Limits
) -> bytes:
    """Answer with the version, topology and limits."""
    return v1.GetServerInfoResponse(
        version=version,
        role=ROLES.number[topology.role],
        cluster=topology.cluster,
        placement_epoch=topology.placement_epoch,
        slots_total=SLOTS_TOTAL,
        shards=[
            v1.ShardPlacement(
                shard=placement.shard,
                slots=[v1.SlotRange(first=first, last=last) for first, last in placement.slots],
                session=placement.session,
            )
            for placement in topology.shards
        ],
        limits=v1.Limits(**copied(limits, Limits)),
        shards_total=topology.shards_total,
    ).SerializeToString()


def decode_get_server_info_response(payload: bytes) -> tuple[str, descriptions.Topology, Limits]:
    """Return the version, topology and limits."""
    response = parse(v1.GetServerInfoResponse, payload)
    topology = descriptions.Topology(
        role=ROLES.member(response.role, "role", MalformedMessage),
        cluster=response.cluster,
        placement_epoch=response.placement_epoch,
        shards_total=response.shards_total,
        shards=tuple(
            descriptions.ShardPlacement(
                shard=placement.shard,
                slots=tuple((slots.first, slots.last) for slots in placement.slots),
                session=placement.session,
            )
            for placement in response.shards
        ),
    )
    return response.version, topology, Limits(**copied(response.limits, Limits))
