"""GetServerInfo: a server's version, topology, limits and problems."""

from __future__ import annotations

from collections.abc import Iterable

from vectorshard.shard import descriptions, membership
from vectorshard.shard.config import SLOTS_TOTAL, Limits
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.wire.primitives import PROBLEM_KINDS, ROLES, copied, parse
from vectorshard.v1 import vectorshard_pb2 as v1


def encode_get_server_info_request() -> bytes:
    """Request the version, topology, limits and problems."""
    return v1.GetServerInfoRequest().SerializeToString()


def decode_get_server_info_request(payload: bytes) -> None:
    """Check that the bytes parse."""
    parse(v1.GetServerInfoRequest, payload)


def encode_get_server_info_response(
    version: str,
    topology: descriptions.Topology,
    limits: Limits,
    problems: Iterable[membership.Problem] = (),
) -> bytes:
    """Answer with the version, topology, limits and problems."""
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
        problems=[encode_problem(problem) for problem in problems],
    ).SerializeToString()


def encode_problem(problem: membership.Problem) -> v1.Problem:
    """Write a problem."""
    return v1.Problem(
        **copied(problem, membership.Problem, "kind"), kind=PROBLEM_KINDS.number[problem.kind]
    )


def decode_problems(problems: Iterable[v1.Problem]) -> tuple[membership.Problem, ...]:
    """Return the problems; those of a kind that a later release has are left out."""
    known = {number: kind for kind, number in PROBLEM_KINDS.number.items()}
    return tuple(
        membership.Problem(**copied(problem, membership.Problem, "kind"), kind=known[problem.kind])
        for problem in problems
        if problem.kind in known
    )


def decode_get_server_info_response(
    payload: bytes,
) -> tuple[str, descriptions.Topology, Limits, tuple[membership.Problem, ...]]:
    """Return the version, topology, limits and problems."""
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
    limits = Limits(**copied(response.limits, Limits))
    return response.version, topology, limits, decode_problems(response.problems)
