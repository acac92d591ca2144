"""The server's account of itself arrives as it was given."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.strategies import texts, uint32s, uint64s
from vectorshard.shard import descriptions, types
from vectorshard.shard.config import Limits
from vectorshard.shard.wire import server_info


@given(
    texts,
    st.sampled_from(types.Role),
    uint64s,
    st.lists(st.builds(lambda first, last: (first, last), uint32s, uint32s), max_size=2),
    st.builds(Limits, **{f.name: uint32s for f in dataclasses.fields(Limits)}),
)
def test_server_info_comes_back_as_it_was_sent(
    text: str, role: types.Role, epoch: int, slots: list[tuple[int, int]], limits: Limits
) -> None:
    topology = descriptions.Topology(
        role=role,
        cluster=text,
        placement_epoch=epoch,
        shards_total=5,
        shards=(descriptions.ShardPlacement(shard=3, slots=tuple(slots)),),
    )
    payload = server_info.encode_get_server_info_response(text, topology, limits)
    assert server_info.decode_get_server_info_response(payload) == (text, topology, limits)


def test_a_question_about_the_server_is_recognized() -> None:
    server_info.decode_get_server_info_request(server_info.encode_get_server_info_request())
