"""What is kept of what shards had, and how far a collection is settled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vectorshard.shard.errors import ShardMissing
from vectorshard.shard.membership import (
    CollectionReport,
    CollectionState,
    Member,
    SeenDirectory,
    Sessions,
    SettleRequest,
    ShardReport,
    Stage,
    Statement,
)
from vectorshard.shard.witnesses import (
    DIRECTORIES_KEPT,
    STATEMENTS_KEPT,
    Remembered,
    newer_directories,
    newer_statements,
    remembered,
    session_at,
    settled,
)

ONE = Statement(shard=1, incarnation="w", life=1, sequence=10, session=5)
SESSIONS = Sessions(first_sequences=(3, 8), sessions=(4, 5))
REPORTED = CollectionReport(
    name="words",
    incarnation="w",
    state=CollectionState.LIVE,
    stage=Stage.COMPLETE,
    sessions=SESSIONS,
    sequence=12,
)
REPORT = ShardReport(
    cluster="c", shard=1, directory="D1", life=1, opens=2, session=5, collections=(REPORTED,)
)
SEEN = SeenDirectory(shard=1, directory="D1", life=1, opens=2, session=5)
OWN = Member(shard=1, directory="D1", life=1)
OTHER = Member(shard=0, directory="D0", life=1)


def test_a_number_belongs_to_the_session_that_began_before_it() -> None:
    assert [session_at(SESSIONS, each) for each in (0, 2, 3, 7, 8, 99)] == [0, 0, 4, 4, 5, 5]


def test_a_report_replaces_what_it_contains() -> None:
    new = replace(ONE, sequence=12)
    assert newer_statements((replace(ONE, sequence=7, session=4), ONE), new, REPORTED) == (new,)


def test_a_report_does_not_replace_what_contradicts_it() -> None:
    new = replace(ONE, sequence=12)
    for lost in (replace(ONE, session=6), replace(ONE, sequence=13, session=6)):
        assert newer_statements((lost,), new, REPORTED) == (lost, new)


def test_equal_numbers_of_two_sessions_are_both_kept() -> None:
    other = replace(ONE, session=6)
    assert newer_statements((ONE,), other) == (ONE, other)
    assert newer_statements((ONE,), ONE) == (ONE,)


def test_an_older_statement_of_a_witness_is_left_with_it() -> None:
    assert newer_statements((ONE,), replace(ONE, sequence=9, session=4)) == (ONE,)
    assert newer_statements((ONE,), replace(ONE, sequence=9)) == (ONE,)


def test_an_earlier_life_is_void() -> None:
    later = replace(ONE, life=2, sequence=1)
    assert newer_statements((ONE,), later) == (later,)
    assert newer_statements((later,), ONE) == (later,)


def test_what_is_kept_is_bounded() -> None:
    kept: tuple[Statement, ...] = ()
    for number in range(20):
        kept = newer_statements(kept, replace(ONE, sequence=number, session=number))
    assert len(kept) == STATEMENTS_KEPT
    assert kept[0].sequence == 0
    assert kept[-1].sequence == 19
    seen: tuple[SeenDirectory, ...] = ()
    for number in range(20):
        seen = newer_directories(seen, replace(SEEN, directory=f"D{number}"))
    assert len(seen) == DIRECTORIES_KEPT


def test_the_newest_opening_is_kept_and_two_of_one_number_are_both() -> None:
    older, later = replace(SEEN, opens=1), replace(SEEN, opens=3)
    assert newer_directories((SEEN,), older) == (SEEN,)
    assert newer_directories((SEEN,), later) == (later,)
    twin = replace(SEEN, session=6)
    assert newer_directories((SEEN,), twin) == (SEEN, twin)
    assert newer_directories((SEEN, twin), replace(SEEN, life=2)) == (replace(SEEN, life=2),)


def test_a_shard_keeps_what_others_have_of_the_collections_that_it_has() -> None:
    own = replace(REPORT, shard=0)
    kept = remembered(Remembered(), [REPORT, own], {"w"}, 0)
    assert kept == Remembered(statements=(replace(ONE, sequence=12),), seen=(SEEN,))
    assert remembered(kept, [REPORT], {"w"}, 0) == kept
    assert remembered(kept, [], set(), 0).statements == ()


def test_openings_of_a_directory_that_lacks_commits_do_not_count() -> None:
    kept = Remembered(statements=(replace(ONE, sequence=13),), seen=(SEEN,))
    copy = replace(REPORT, opens=3, session=7)
    assert remembered(kept, [copy], {"w"}, 0).seen == (SEEN,)
    whole = replace(copy, collections=(replace(REPORTED, sequence=13),))
    opened = replace(SEEN, opens=3, session=7)
    assert remembered(kept, [whole], {"w"}, 0).seen == (opened,)
    assert remembered(kept, [replace(copy, life=2)], {"w"}, 0).seen == (replace(opened, life=2),)


def test_a_collection_that_takes_no_writes_yet_is_not_witnessed() -> None:
    known = replace(REPORT, collections=(replace(REPORTED, stage=Stage.KNOWN),))
    assert remembered(Remembered(), [known], {"w"}, 0).statements == ()


def request(stage: Stage, *members: Member) -> SettleRequest:
    return SettleRequest(collection="words", incarnation="w", stage=stage, members=members)


def test_a_stage_only_rises_and_a_member_changes_only_with_its_life() -> None:
    known = request(Stage.KNOWN, OTHER, OWN)
    assert settled(Stage.CREATED, (), OWN, known) == (Stage.KNOWN, (OTHER, OWN))
    assert settled(Stage.COMPLETE, (OTHER, OWN), OWN, known) == (Stage.COMPLETE, (OTHER, OWN))
    later = replace(OTHER, directory="D0b", life=2)
    complete = request(Stage.COMPLETE, later, OWN)
    assert settled(Stage.KNOWN, (OTHER, OWN), OWN, complete) == (Stage.COMPLETE, (later, OWN))
    assert settled(Stage.COMPLETE, (later, OWN), OWN, known)[1] == (later, OWN)


def test_what_an_earlier_release_took_as_complete_becomes_known_first() -> None:
    known = request(Stage.KNOWN, OTHER, OWN)
    assert settled(Stage.COMPLETE, (), OWN, known)[0] is Stage.KNOWN
    assert settled(Stage.COMPLETE, (), OWN, request(Stage.COMPLETE, OTHER, OWN))[0] is (
        Stage.COMPLETE
    )


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ((), request(Stage.KNOWN, OTHER, replace(OWN, directory="D1b"))),
        ((), request(Stage.KNOWN, OTHER, replace(OWN, life=2))),
        ((OTHER, OWN), request(Stage.KNOWN, replace(OTHER, directory="D0b"), OWN)),
        ((), request(Stage.COMPLETE)),
    ],
    ids=["another directory of this shard", "another life", "another member", "a round is skipped"],
)
def test_a_settle_that_contradicts_the_members_is_refused(
    members: tuple[Member, ...], wanted: SettleRequest
) -> None:
    with pytest.raises(ShardMissing):
        settled(Stage.CREATED, members, OWN, wanted)
