"""What a router concludes from what shards have, and remember of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from vectorshard.router.fan_out.memory import FORGET_AFTER_S, Memory
from vectorshard.router.fan_out.verdicts import (
    CollectionVerdict,
    Kind,
    examine,
    loss_of,
    unexamined,
)
from vectorshard.shard.membership import (
    CollectionReport,
    CollectionState,
    Member,
    SeenDirectory,
    Sessions,
    ShardReport,
    Stage,
    Statement,
)
from vectorshard.shard.types import CollectionConfig, IdType, IndexConfig, Metric, Token

CONFIG = CollectionConfig(
    name="words", dim=2, metric=Metric.L2, id_type=IdType.INT64, index=IndexConfig()
)
MEMBERS = (
    Member(shard=0, directory="D0", life=1),
    Member(shard=1, directory="D1", life=1),
)


def words(sequence: int = 0, session: int = 7, **changes: Any) -> CollectionReport:
    """A complete collection whose commits are all of one session."""
    whole = CollectionReport(
        name="words",
        incarnation="w",
        state=CollectionState.LIVE,
        stage=Stage.COMPLETE,
        members=MEMBERS,
        sessions=Sessions(first_sequences=(1,), sessions=(session,)),
        sequence=sequence,
        accepted=sequence,
        live=sequence,
    )
    return replace(whole, **changes)


def shard(number: int, *collections: CollectionReport, **changes: Any) -> ShardReport:
    report = ShardReport(
        cluster="c",
        shard=number,
        directory=f"D{number}",
        life=1,
        opens=1,
        session=100 + number,
        collections=collections,
    )
    return replace(report, **changes)


def knowing(*reports: ShardReport) -> Memory:
    """A memory that met shards in one round, and heard what they remember in the next."""
    memory = Memory()
    hear(memory, *reports)
    hear(memory, *reports)
    return memory


def hear(memory: Memory, *reports: ShardReport) -> None:
    """End a round with these reports, and begin the next."""
    memory.heard(reports)
    memory.begin()


def verdict_on(
    reports: Sequence[ShardReport], memory: Memory, incarnation: str = "w"
) -> CollectionVerdict:
    by_shard = {report.shard: report for report in reports}
    return examine(by_shard, 2, memory)[incarnation]


def kinds(verdict: CollectionVerdict) -> Mapping[int, Kind]:
    return {number: each.kind for number, each in verdict.by_shard.items()}


WHOLE = (shard(0, words(3)), shard(1, words(5)))
EMPTIED = shard(1, directory="D1b", session=200)


def test_what_all_shards_have_is_present_and_settled() -> None:
    verdict = verdict_on(WHOLE, knowing(*WHOLE))
    assert kinds(verdict) == {0: Kind.PRESENT, 1: Kind.PRESENT}
    assert verdict.stage_due is None
    assert not verdict.members_due


def test_a_shard_that_was_not_heard_before_the_round_has_no_verdict() -> None:
    reports = {report.shard: report for report in WHOLE}
    assert unexamined(reports, Memory()) == {0, 1}
    assert set(kinds(verdict_on(WHOLE, Memory())).values()) == {Kind.ABSENT}
    restarted = replace(WHOLE[1], session=201, opens=2)
    memory = knowing(*WHOLE)
    assert unexamined({0: WHOLE[0], 1: restarted}, memory) == {1}
    assert kinds(verdict_on([WHOLE[0], restarted], memory))[1] is Kind.ABSENT
    hear(memory, WHOLE[0], restarted)
    assert unexamined({0: WHOLE[0], 1: restarted}, memory) == {1}  # the other may have been faster
    assert unexamined({1: restarted}, memory) == set()
    hear(memory, WHOLE[0], restarted)
    assert unexamined({0: WHOLE[0], 1: restarted}, memory) == set()


def test_what_is_heard_in_a_round_accuses_only_from_the_next_round_on() -> None:
    memory = knowing(*WHOLE)
    memory.heard([replace(WHOLE[1], collections=(words(6),), version=1)])
    memory.acknowledged(Token(incarnation="w", sequences={1: 7}, sessions={1: 101}))
    assert kinds(verdict_on(WHOLE, memory))[1] is Kind.PRESENT  # a slow report
    memory.begin()
    assert kinds(verdict_on(WHOLE, memory))[1] is Kind.MISSING


def test_an_emptied_directory_is_missing_and_nothing_is_completed_on_it() -> None:
    memory = knowing(WHOLE[0], EMPTIED)  # a router that has seen nothing else
    verdict = verdict_on([WHOLE[0], EMPTIED], memory)
    assert verdict.missing() == {
        1: "shard 1: its directory is another than the one that held the collection"
    }
    assert not verdict.completable


def test_a_collection_that_an_old_router_completed_on_an_emptied_directory_is_missing() -> None:
    created = replace(EMPTIED, collections=(words(members=()),))
    verdict = verdict_on([WHOLE[0], created], knowing(WHOLE[0], created))
    assert kinds(verdict)[1] is Kind.MISSING
    assert verdict.stage_due is None


@pytest.mark.parametrize("state", [CollectionState.LOST, CollectionState.FOREIGN])
def test_what_a_shard_reports_as_lost_is_missing_at_once(state: CollectionState) -> None:
    lost = shard(1, words(state=state, reason="its directory is gone"))
    verdict = verdict_on([WHOLE[0], lost], Memory())
    assert verdict.by_shard[1].kind is Kind.MISSING
    assert verdict.by_shard[1].reason == "shard 1: its directory is gone"


def test_a_damaged_collection_is_marked_and_an_unreadable_one_is_not_missing() -> None:
    damaged = shard(1, words(state=CollectionState.DAMAGED))
    assert verdict_on([WHOLE[0], damaged], Memory()).by_shard[1].damaged
    unreadable = shard(1, words(state=CollectionState.UNREADABLE, reason="EIO"))
    assert verdict_on([WHOLE[0], unreadable], knowing(*WHOLE)).by_shard[1].kind is Kind.ABSENT


def test_a_shard_with_fewer_commits_than_others_remember_is_missing() -> None:
    statement = Statement(shard=1, incarnation="w", life=1, sequence=9, session=0x2A)
    memory = knowing(replace(WHOLE[0], statements=(statement,)), WHOLE[1])
    verdict = verdict_on(WHOLE, memory)
    assert verdict.missing() == {
        1: "shard 1: it is older than what others remember of it: commit 9 of session 2a, now 5"
    }


def test_a_commit_of_the_same_number_but_another_session_is_missing() -> None:
    statement = Statement(shard=1, incarnation="w", life=1, sequence=4, session=8)
    memory = knowing(replace(WHOLE[0], statements=(statement,)), WHOLE[1])
    assert kinds(verdict_on(WHOLE, memory))[1] is Kind.MISSING


def test_what_a_client_was_told_of_accuses_like_a_statement() -> None:
    memory = knowing(*WHOLE)
    memory.acknowledged(Token(incarnation="w", sequences={1: 6}, sessions={1: 101}))
    older = replace(WHOLE[1], session=300)
    hear(memory, WHOLE[0], older)
    hear(memory, WHOLE[0], older)
    assert kinds(verdict_on([WHOLE[0], older], memory))[1] is Kind.MISSING


def test_a_token_of_an_unknown_session_accuses_of_nothing() -> None:
    memory = knowing(*WHOLE)
    memory.acknowledged(Token(incarnation="w", sequences={1: 6}, sessions={1: 999}))
    memory.acknowledged(Token(incarnation="w", sequences={1: 6}))
    memory.begin()
    assert kinds(verdict_on(WHOLE, memory))[1] is Kind.PRESENT


@pytest.mark.parametrize(
    ("opens", "session"),
    [(3, 101), (2, 999)],
    ids=["opened less often than was seen", "another opening of that number"],
)
def test_an_older_copy_or_a_clone_is_missing(opens: int, session: int) -> None:
    seen = SeenDirectory(shard=1, directory="D1", life=1, opens=opens, session=session)
    now = replace(WHOLE[1], opens=2)
    verdict = verdict_on([WHOLE[0], now], knowing(replace(WHOLE[0], seen=(seen,)), now))
    assert "served twice" in verdict.missing()[1]


def test_a_create_that_has_not_reached_all_may_be_completed() -> None:
    created = shard(0, words(stage=Stage.CREATED, members=()))
    verdict = verdict_on([created, shard(1)], knowing(created, shard(1)))
    assert kinds(verdict) == {0: Kind.PRESENT, 1: Kind.UNFINISHED}
    assert verdict.completable
    reports = {0: created, 1: shard(1)}
    without_one = examine(reports, 3, knowing(created, shard(1)))["w"]
    assert kinds(without_one)[1] is Kind.UNFINISHED
    assert not without_one.completable


def test_a_create_is_settled_in_two_rounds() -> None:
    created = words(stage=Stage.CREATED, members=())
    known = words(stage=Stage.KNOWN)
    for here, there, due in (
        (created, created, Stage.KNOWN),
        (known, created, Stage.KNOWN),
        (known, known, Stage.COMPLETE),
        (words(), known, Stage.COMPLETE),
    ):
        reports = (shard(0, here), shard(1, there))
        verdict = verdict_on(reports, knowing(*reports))
        assert (verdict.stage_due, verdict.members_due) == (due, MEMBERS)


def test_what_was_known_on_all_shards_and_is_gone_from_one_is_missing() -> None:
    known = shard(0, words(stage=Stage.KNOWN, members=MEMBERS[:1]))
    lacking = shard(1)
    verdict = verdict_on([known, lacking], knowing(known, lacking))
    assert "which shard 0 has whole" in verdict.missing()[1]
    created = shard(0, words(stage=Stage.CREATED, members=()))
    # It became known after this round began: perhaps the other shard answered before.
    verdict = verdict_on([known, lacking], knowing(created, lacking))
    assert kinds(verdict)[1] is Kind.ABSENT


def test_a_create_that_ended_elsewhere_cannot_be_unfinished_here() -> None:
    older = shard(1, words(stage=Stage.CREATED, members=()))
    verdict = verdict_on([WHOLE[0], older], knowing(WHOLE[0], older))
    assert "its create is unfinished here" in verdict.missing()[1]


@pytest.mark.parametrize(("accepted", "kind"), [(0, Kind.UNFINISHED), (1, Kind.MISSING)])
def test_without_members_only_rows_prove_that_all_had_it(accepted: int, kind: Kind) -> None:
    before = shard(0, words(accepted, members=()))
    verdict = verdict_on([before, shard(1)], knowing(before, shard(1)))
    assert kinds(verdict)[1] is kind


def test_a_collection_of_an_earlier_release_gets_its_members() -> None:
    reports = (shard(0, words(3, members=())), shard(1, words(5, members=())))
    verdict = verdict_on(reports, knowing(*reports))
    assert (verdict.stage_due, verdict.members_due) == (Stage.COMPLETE, MEMBERS)


def test_a_tombstone_means_that_the_drop_is_finished_everywhere_and_then_forgotten() -> None:
    tombstone = words(state=CollectionState.DROPPED)
    half = verdict_on([shard(0, tombstone), WHOLE[1]], knowing(*WHOLE))
    assert half.dropped
    assert kinds(half) == {0: Kind.DROPPED, 1: Kind.UNFINISHED}
    assert not half.forgettable
    reports = (shard(0, tombstone), shard(1))
    memory = knowing(*reports)
    assert verdict_on(reports, memory).forgettable
    assert not verdict_on(reports[:1], memory).forgettable
    assert memory.ripe(["w"], 0.0) == []
    assert memory.ripe(["w"], FORGET_AFTER_S) == ["w"]
    assert memory.ripe([], FORGET_AFTER_S + 1) == []
    assert memory.ripe(["w"], FORGET_AFTER_S + 2) == []
    hear(memory, shard(0, version=1))
    assert examine({0: shard(0), 1: shard(1)}, 2, memory) == {}


def test_two_directories_emptied_together_are_missing_while_a_router_remembers() -> None:
    memory = knowing(*WHOLE)
    emptied = (shard(0, directory="D0b", session=300), EMPTIED)
    hear(memory, *emptied)
    for _ in range(2):
        hear(memory, *emptied)
        assert set(kinds(verdict_on(emptied, memory)).values()) == {Kind.MISSING}


def test_an_accepted_loss_ends_the_alarm_and_the_lost_volume_is_refused() -> None:
    memory = knowing(*WHOLE)
    hear(memory, WHOLE[0], EMPTIED)
    hear(memory, WHOLE[0], EMPTIED)
    reports = {0: WHOLE[0], 1: EMPTIED}
    verdict = verdict_on([WHOLE[0], EMPTIED], memory)
    loss = loss_of(1, verdict, reports, memory, CONFIG)
    assert (loss.sequence, loss.witnessed_sequence, loss.witnessed_accepted) == (0, 5, 5)
    assert (loss.stage, loss.members) == (Stage.COMPLETE, MEMBERS)
    life = memory.newest_life(EMPTIED) + 1
    assert life == 2
    members = (MEMBERS[0], Member(shard=1, directory="D1b", life=2))
    # Made again, but its life is not raised yet: a crash may have come between.
    half = replace(EMPTIED, collections=(words(members=members),), version=1)
    assert kinds(verdict_on([WHOLE[0], half], memory))[1] is Kind.MISSING
    done = replace(half, life=life, version=2)
    verdict = verdict_on([WHOLE[0], done], memory)
    assert kinds(verdict)[1] is Kind.PRESENT
    assert (verdict.stage_due, verdict.members_due) == (Stage.COMPLETE, members)
    hear(memory, WHOLE[0], done)
    lost_volume = replace(WHOLE[1], session=400, opens=2)
    hear(memory, WHOLE[0], lost_volume)
    hear(memory, WHOLE[0], lost_volume)
    assert "the lost disk is back" in verdict_on([WHOLE[0], lost_volume], memory).missing()[1]


def test_each_witness_is_heard_though_another_has_seen_more() -> None:
    lost = Statement(shard=1, incarnation="w", life=1, sequence=4, session=8)
    memory = knowing(WHOLE[0], WHOLE[1])
    witness = replace(WHOLE[0], statements=(lost,), version=1)
    hear(memory, witness, WHOLE[1])
    assert kinds(verdict_on([witness, WHOLE[1]], memory))[1] is Kind.MISSING


def test_without_a_witness_the_loss_is_unknown() -> None:
    fresh = knowing(WHOLE[0], EMPTIED)
    verdict = verdict_on([WHOLE[0], EMPTIED], fresh)
    loss = loss_of(1, verdict, {0: WHOLE[0], 1: EMPTIED}, fresh, CONFIG)
    assert loss.witnessed_accepted is None
