"""The server's account of itself arrives as it was given."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.strategies import problems, texts, uint32s, uint64s
from vectorshard.shard import descriptions, types
from vectorshard.shard.config import Limits
from vectorshard.shard.membership import Problem
from vectorshard.shard.wire import server_info
from vectorshard.v1 import vectorshard_pb2 as v1


@given(
    texts,
    st.sampled_from(types.Role),
    uint64s,
    st.lists(st.builds(lambda first, last: (first, last), uint32s, uint32s), max_size=2),
    st.builds(Limits, **{f.name: uint32s for f in dataclasses.fields(Limits)}),
    st.lists(problems, max_size=2),
)
def test_server_info_comes_back_as_it_was_sent(
    text: str,
    role: types.Role,
    epoch: int,
    slots: list[tuple[int, int]],
    limits: Limits,
    problems: list[Problem],
) -> None:
    topology = descriptions.Topology(
        role=role,
        cluster=text,
        placement_epoch=epoch,
        shards_total=5,
        shards=(descriptions.ShardPlacement(shard=3, slots=tuple(slots), session=text),),
    )
    payload = server_info.encode_get_server_info_response(text, topology, limits, problems)
    assert server_info.decode_get_server_info_response(payload) == (
        text,
        topology,
        limits,
        tuple(problems),
    )


def test_a_problem_of_a_later_release_is_left_out() -> None:
    known = v1.Problem(shard=1, kind=v1.PROBLEM_KIND_DAMAGED, text="known")
    later = v1.Problem(shard=1, kind=1_000, text="later")  # type: ignore[arg-type]
    assert [each.text for each in server_info.decode_problems([later, known])] == ["known"]


def test_a_question_about_the_server_is_recognized() -> None:
    server_info.decode_get_server_info_request(server_info.encode_get_server_info_request())
