"""What travels beside a request arrives as it was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.types import NO_LIMIT, Call
from vectorshard.shard.wire.call_metadata import call_of, metadata_of

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E))


@given(
    incarnation=st.from_regex(r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})?", fullmatch=True),
    placement=PRINTABLE,
    deadline=st.none() | st.floats(0, 1e9),
    staged=st.booleans(),
)
def test_whom_a_call_means_arrives_and_the_deadline_is_told_apart(
    incarnation: str, placement: str, deadline: float | None, staged: bool
) -> None:
    call = Call(deadline=deadline, incarnation=incarnation, placement=placement, staged=staged)
    assert call_of(metadata_of(call), deadline) == call


@pytest.mark.parametrize("sent", ["../../etc", "a/b", "", ".", "x" * 65, "a b", "a\n"])
def test_what_could_be_a_path_is_no_incarnation(sent: str) -> None:
    with pytest.raises(InvalidParameter, match="vectorshard-incarnation"):
        call_of([("vectorshard-incarnation", sent)], None)


def test_a_call_that_means_anybody_has_no_metadata() -> None:
    assert metadata_of(NO_LIMIT) == ()
    assert metadata_of(Call(deadline=5.0)) == ()
    assert call_of(None, None) == call_of((), None) == NO_LIMIT


def test_keys_are_such_as_grpc_takes_and_say_whose_they_are() -> None:
    pairs = metadata_of(Call(incarnation="i", placement="p", staged=True))
    assert pairs == (
        ("vectorshard-incarnation", "i"),
        ("vectorshard-placement", "p"),
        ("vectorshard-staged", "1"),
    )


def test_metadata_of_others_is_passed_over() -> None:
    metadata = (
        ("user-agent", "grpc-python"),
        ("vectorshard-incarnation", "i"),
        ("vectorshard-something-later", "x"),
        ("trace-bin", b"\xff"),
    )
    assert call_of(metadata, 7.0) == Call(deadline=7.0, incarnation="i")
