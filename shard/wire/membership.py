"""Exchange, Settle and AcceptLoss of ShardService: what shards have, and know of each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import membership
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.wire.collections import decode_config, encode_config
from vectorshard.shard.wire.primitives import COLLECTION_STATES, STAGES, copied, parse
from vectorshard.shard.wire.server_info import decode_problems, encode_problem

# ---- the parts -----------------------------------------------------------------------------------


def encode_members(members: Iterable[membership.Member]) -> list[twins.Member]:
    """Return members as messages."""
    return [twins.Member(**copied(member, membership.Member)) for member in members]


def decode_members(members: Iterable[twins.Member]) -> tuple[membership.Member, ...]:
    """Return the members of messages."""
    return tuple(membership.Member(**copied(each, membership.Member)) for each in members)


_OF_COLLECTION = ("state", "stage", "members", "sessions")


def _encode_collection(report: membership.CollectionReport) -> twins.CollectionReport:
    return twins.CollectionReport(
        **copied(report, membership.CollectionReport, *_OF_COLLECTION),
        state=COLLECTION_STATES.number[report.state],
        stage=STAGES.number[report.stage],
        members=encode_members(report.members),
        first_sequences=report.sessions.first_sequences,
        sessions=report.sessions.sessions,
    )


def decode_sessions(
    first_sequences: Iterable[int], numbers: Iterable[int], field: str
) -> membership.Sessions:
    """Return sessions; MalformedMessage if the two are not parallel."""
    sessions = membership.Sessions(first_sequences=tuple(first_sequences), sessions=tuple(numbers))
    if len(sessions.first_sequences) != len(sessions.sessions):
        raise MalformedMessage(
            f"{len(sessions.sessions)} sessions do not match {len(sessions.first_sequences)} "
            "sequence numbers",
            field=field,
        )
    return sessions


def _decode_collection(report: twins.CollectionReport) -> membership.CollectionReport:
    return membership.CollectionReport(
        **copied(report, membership.CollectionReport, *_OF_COLLECTION),
        state=COLLECTION_STATES.member(report.state, "collections.state", MalformedMessage),
        stage=STAGES.member(report.stage, "collections.stage", MalformedMessage),
        members=decode_members(report.members),
        sessions=decode_sessions(report.first_sequences, report.sessions, "collections.sessions"),
    )


_OF_SHARD = ("collections", "statements", "seen", "problems")


def _encode_report(report: membership.ShardReport) -> twins.ShardReport:
    return twins.ShardReport(
        **copied(report, membership.ShardReport, *_OF_SHARD),
        collections=[_encode_collection(each) for each in report.collections],
        statements=[
            twins.Statement(**copied(each, membership.Statement)) for each in report.statements
        ],
        seen=[
            twins.SeenDirectory(**copied(each, membership.SeenDirectory)) for each in report.seen
        ],
        problems=[encode_problem(each) for each in report.problems],
    )


def _decode_report(report: twins.ShardReport) -> membership.ShardReport:
    return membership.ShardReport(
        **copied(report, membership.ShardReport, *_OF_SHARD),
        collections=tuple(_decode_collection(each) for each in report.collections),
        statements=tuple(
            membership.Statement(**copied(each, membership.Statement)) for each in report.statements
        ),
        seen=tuple(
            membership.SeenDirectory(**copied(each, membership.SeenDirectory))
            for each in report.seen
        ),
        problems=decode_problems(report.problems),
    )


# ---- Exchange ------------------------------------------------------------------------------------


def encode_exchange_request(request: membership.ExchangeRequest) -> bytes:
    """Hand over reports of other shards."""
    return twins.ExchangeRequest(
        others=[_encode_report(each) for each in request.others],
        forget=request.forget,
        known=[twins.KnownReport(**copied(each, membership.KnownReport)) for each in request.known],
    ).SerializeToString()


def decode_exchange_request(payload: bytes) -> membership.ExchangeRequest:
    """Return the reports of other shards. Raises MalformedMessage if the bytes do not parse."""
    request = parse(twins.ExchangeRequest, payload)
    return membership.ExchangeRequest(
        others=tuple(_decode_report(each) for each in request.others),
        forget=tuple(request.forget),
        known=tuple(
            membership.KnownReport(**copied(each, membership.KnownReport)) for each in request.known
        ),
    )


def without_known(
    reports: Iterable[membership.ShardReport], known: Iterable[membership.KnownReport]
) -> list[membership.ShardReport]:
    """Return the reports; of those that the caller has, only the head and the problems."""
    versions = {each.shard: (each.session, each.version) for each in known}
    return [
        replace(report, collections=(), statements=(), seen=(), unchanged=True)
        if versions.get(report.shard) == (report.session, report.version)
        else report
        for report in reports
    ]


def encode_exchange_response(reports: Iterable[membership.ShardReport]) -> bytes:
    """Answer with the reports of the leaf shards, in the order given."""
    return twins.ExchangeResponse(
        reports=[_encode_report(each) for each in reports]
    ).SerializeToString()


def decode_exchange_response(payload: bytes) -> Sequence[membership.ShardReport]:
    """Return the reports of the leaf shards."""
    return [_decode_report(each) for each in parse(twins.ExchangeResponse, payload).reports]


# ---- Settle --------------------------------------------------------------------------------------


def encode_settle_request(request: membership.SettleRequest) -> bytes:
    """Request a stage of a collection, and its members."""
    return twins.SettleRequest(
        collection=request.collection,
        incarnation=request.incarnation,
        stage=STAGES.number[request.stage],
        members=encode_members(request.members),
        shard=request.shard,
    ).SerializeToString()


def decode_settle_request(payload: bytes) -> membership.SettleRequest:
    """Return the stage and the members.

    Raises MalformedMessage if the bytes do not parse, InvalidParameter for an unknown stage.
    """
    request = parse(twins.SettleRequest, payload)
    return membership.SettleRequest(
        collection=request.collection,
        incarnation=request.incarnation,
        stage=STAGES.member(request.stage, "stage", InvalidParameter),
        members=decode_members(request.members),
        shard=request.shard if request.HasField("shard") else None,
    )


def encode_settle_response() -> bytes:
    """Answer that the stage is durable."""
    return twins.SettleResponse().SerializeToString()


def decode_settle_response(payload: bytes) -> None:
    """Check that the bytes parse."""
    parse(twins.SettleResponse, payload)


# ---- AcceptLoss ----------------------------------------------------------------------------------


_WITNESSED = ("witnessed_sequence", "witnessed_accepted", "witnessed_live")
_OF_LOSS = ("config", "stage", "members", *_WITNESSED)


def _encode_loss(loss: membership.AcceptedLoss) -> twins.AcceptedLoss:
    return twins.AcceptedLoss(
        **copied(loss, membership.AcceptedLoss, *_OF_LOSS),
        **{name: getattr(loss, name) for name in _WITNESSED},  # None: absent
        config=encode_config(loss.config),
        stage=STAGES.number[loss.stage],
        members=encode_members(loss.members),
    )


def _decode_loss(loss: twins.AcceptedLoss) -> membership.AcceptedLoss:
    return membership.AcceptedLoss(
        **copied(loss, membership.AcceptedLoss, *_OF_LOSS),
        witnessed_sequence=loss.witnessed_sequence if loss.HasField("witnessed_sequence") else None,
        witnessed_accepted=loss.witnessed_accepted if loss.HasField("witnessed_accepted") else None,
        witnessed_live=loss.witnessed_live if loss.HasField("witnessed_live") else None,
        config=decode_config(loss.config),
        stage=STAGES.member(loss.stage, "losses.stage", MalformedMessage),
        members=decode_members(loss.members),
    )


def encode_accept_loss_request(request: membership.AcceptLossRequest) -> bytes:
    """Request what is lost on a shard, or its acceptance."""
    return twins.AcceptLossRequest(
        **copied(request, membership.AcceptLossRequest, "losses"),
        losses=[_encode_loss(each) for each in request.losses],
    ).SerializeToString()


def decode_accept_loss_request(payload: bytes) -> membership.AcceptLossRequest:
    """Return the shard that is meant, and what it has to record."""
    request = parse(twins.AcceptLossRequest, payload)
    return membership.AcceptLossRequest(
        **copied(request, membership.AcceptLossRequest, "losses"),
        losses=tuple(_decode_loss(each) for each in request.losses),
    )


def encode_accept_loss_response(result: membership.AcceptLossResult) -> bytes:
    """Answer with the losses, in the order given."""
    return twins.AcceptLossResponse(
        losses=[_encode_loss(each) for each in result.losses], life=result.life
    ).SerializeToString()


def decode_accept_loss_response(payload: bytes) -> membership.AcceptLossResult:
    """Return the losses, by collection."""
    response = parse(twins.AcceptLossResponse, payload)
    return membership.AcceptLossResult(
        losses=tuple(_decode_loss(each) for each in response.losses), life=response.life
    )
