"""What shards tell each other arrives as it was told, to the last field."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.shard.wire.messages import refusal
from tests.shard.wire.strategies import configs, problems, texts, uint32s, uint64s
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.membership import (
    AcceptedLoss,
    AcceptLossRequest,
    AcceptLossResult,
    CollectionReport,
    CollectionState,
    ExchangeRequest,
    KnownReport,
    Member,
    SeenDirectory,
    Sessions,
    SettleRequest,
    ShardReport,
    Stage,
    Statement,
)
from vectorshard.shard.wire import membership


def some(item: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    """Return none, one, or two."""
    return st.lists(item, max_size=2).map(tuple)


members = st.builds(Member, shard=uint32s, directory=texts, life=uint32s)
sessions = st.lists(st.tuples(uint64s, uint64s), max_size=3).map(
    lambda pairs: Sessions(
        first_sequences=tuple(first for first, _ in pairs),
        sessions=tuple(session for _, session in pairs),
    )
)
collections = st.builds(
    CollectionReport,
    name=texts,
    incarnation=texts,
    state=st.sampled_from(CollectionState),
    reason=texts,
    stage=st.sampled_from(Stage),
    members=some(members),
    sessions=sessions,
    sequence=uint64s,
    accepted=uint64s,
    live=uint64s,
    sum=st.binary(max_size=16),
)
statements = st.builds(
    Statement,
    shard=uint32s,
    incarnation=texts,
    life=uint32s,
    sequence=uint64s,
    session=uint64s,
    accepted=uint64s,
    live=uint64s,
    sum=st.binary(max_size=16),
)
seen = st.builds(
    SeenDirectory, shard=uint32s, directory=texts, life=uint32s, opens=uint64s, session=uint64s
)
reports = st.builds(
    ShardReport,
    cluster=texts,
    shard=uint32s,
    directory=texts,
    life=uint32s,
    opens=uint64s,
    session=uint64s,
    version=uint64s,
    collections=some(collections),
    statements=some(statements),
    seen=some(seen),
    problems=some(problems),
    unchanged=st.booleans(),
)
known = st.builds(KnownReport, shard=uint32s, session=uint64s, version=uint64s)
losses = st.builds(
    AcceptedLoss,
    collection=texts,
    incarnation=texts,
    reason=texts,
    config=configs,
    sequence=uint64s,
    accepted=uint64s,
    live=uint64s,
    witnessed_sequence=st.none() | uint64s,
    witnessed_accepted=st.none() | uint64s,
    witnessed_live=st.none() | uint64s,
    stage=st.sampled_from(Stage),
    members=some(members),
)

SLOW = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50, deadline=None)


@SLOW
@given(st.builds(ExchangeRequest, others=some(reports), forget=some(texts), known=some(known)))
def test_reports_of_others_arrive_as_they_were_sent(request_: ExchangeRequest) -> None:
    payload = membership.encode_exchange_request(request_)
    assert membership.decode_exchange_request(payload) == request_


@SLOW
@given(some(reports))
def test_reports_come_back_as_they_were_made(answer: tuple[ShardReport, ...]) -> None:
    payload = membership.encode_exchange_response(answer)
    assert tuple(membership.decode_exchange_response(payload)) == answer


@SLOW
@given(
    st.builds(
        SettleRequest,
        collection=texts,
        incarnation=texts,
        stage=st.sampled_from(Stage),
        members=some(members),
        shard=st.none() | uint32s,
    )
)
def test_a_stage_arrives_as_it_was_sent(request_: SettleRequest) -> None:
    payload = membership.encode_settle_request(request_)
    assert membership.decode_settle_request(payload) == request_


@SLOW
@given(
    st.builds(
        AcceptLossRequest, shard=uint32s, accept=st.booleans(), losses=some(losses), life=uint32s
    )
)
def test_a_loss_arrives_as_it_was_sent(request_: AcceptLossRequest) -> None:
    payload = membership.encode_accept_loss_request(request_)
    assert membership.decode_accept_loss_request(payload) == request_


@SLOW
@given(st.builds(AcceptLossResult, losses=some(losses), life=uint32s))
def test_what_was_lost_comes_back_as_it_was_recorded(result: AcceptLossResult) -> None:
    payload = membership.encode_accept_loss_response(result)
    assert membership.decode_accept_loss_response(payload) == result


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (Member, twins.Member),
        (SeenDirectory, twins.SeenDirectory),
        (Statement, twins.Statement),
        (KnownReport, twins.KnownReport),
        (ShardReport, twins.ShardReport),
        (ExchangeRequest, twins.ExchangeRequest),
        (SettleRequest, twins.SettleRequest),
        (AcceptedLoss, twins.AcceptedLoss),
        (AcceptLossRequest, twins.AcceptLossRequest),
        (AcceptLossResult, twins.AcceptLossResponse),
    ],
)
def test_no_field_is_forgotten(vocabulary: type, message: type) -> None:
    fields = {each.name for each in dataclasses.fields(vocabulary)}
    assert fields == set(message.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


def test_sessions_without_their_numbers_are_malformed() -> None:
    report = twins.CollectionReport(
        state=twins.COLLECTION_STATE_LIVE, stage=twins.STAGE_COMPLETE, sessions=[1]
    )
    response = twins.ExchangeResponse(reports=[twins.ShardReport(collections=[report])])
    payload = response.SerializeToString()
    decode = membership.decode_exchange_response
    assert refusal(MalformedMessage, decode, payload)[0] == "collections.sessions"


def test_an_unknown_stage_is_the_callers_mistake() -> None:
    assert refusal(InvalidParameter, membership.decode_settle_request, b"") == ("stage", None)


def test_a_report_that_the_caller_has_is_sent_without_its_contents() -> None:
    report = ShardReport(
        cluster="c",
        shard=1,
        directory="d",
        life=1,
        opens=1,
        session=5,
        version=7,
        seen=(SeenDirectory(shard=0, directory="e", life=1, opens=1, session=2),),
    )
    has = KnownReport(shard=1, session=5, version=7)
    [short] = membership.without_known([report], [has])
    assert short == dataclasses.replace(report, seen=(), unchanged=True)
    for other in ({"version": 6}, {"session": 4}, {"shard": 2}):
        assert membership.without_known([report], [dataclasses.replace(has, **other)]) == [report]
