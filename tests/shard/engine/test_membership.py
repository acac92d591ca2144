"""A shard's part in noticing lost disks: what it reports, keeps, refuses and records."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.crash_disk import FailingDisk
from tests.shard.samples import config_of, corpus_of, identity_of, open_shard
from vectorshard.shard.engine import membership
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    IncarnationMismatch,
    InvalidParameter,
    ShardMissing,
    ShardUnavailable,
    WritesLost,
)
from vectorshard.shard.membership import (
    AcceptedLoss,
    AcceptLossRequest,
    CollectionReport,
    CollectionState,
    ExchangeRequest,
    Member,
    ProblemKind,
    SeenDirectory,
    SettleRequest,
    ShardReport,
    Stage,
    Statement,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    SearchRequest,
    Token,
    UpsertRequest,
)

STAGED = Call(incarnation="first", staged=True)
CORPUS = corpus_of(60)
ALL = ((0, 4_095),)
TWO = identity_of(0, 2, ALL)
THREE = identity_of(0, 3, ALL)


def open_one_of(path: Path, identity=TWO, disk: Disk | None = None) -> LocalShard:  # type: ignore[no-untyped-def]
    return open_shard(path, identity=identity, disk=disk)


@pytest_asyncio.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    """One of two shards, which owns all slots; empty."""
    shard = open_one_of(tmp_path)
    yield shard
    await shard.close()


async def put(shard: LocalShard, first: int = 0, last: int = 60) -> Token:
    rows = CORPUS.take(slice(first, last))
    request = UpsertRequest(collection="words", ids=rows.ids, vectors=rows.vectors)
    return (await shard.upsert(request)).token


async def report_of(shard: LocalShard, *others: ShardReport, forget: str = "") -> ShardReport:
    request = ExchangeRequest(others=others, forget=(forget,) if forget else ())
    (report,) = await shard.exchange(request)
    return report


async def words_of(shard: LocalShard) -> CollectionReport:
    (words,) = (await report_of(shard)).collections
    return words


def settle(stage: Stage, *members: Member, incarnation: str = "first") -> SettleRequest:
    return SettleRequest(
        collection="words", incarnation=incarnation, stage=stage, members=tuple(members)
    )


async def members_of(shard: LocalShard) -> tuple[Member, Member]:
    """Return this shard and another one as members."""
    report = await report_of(shard)
    own = Member(shard=0, directory=report.directory, life=report.life)
    return own, Member(shard=1, directory="other", life=1)


async def created(shard: LocalShard) -> tuple[Member, Member]:
    """Create a collection as a router does; return its members."""
    await shard.create_collection(config_of(), call=STAGED)
    members = await members_of(shard)
    await shard.settle(settle(Stage.KNOWN, *members))
    await shard.settle(settle(Stage.COMPLETE, *members))
    return members


async def closed_with_words(path: Path) -> str:
    """Leave a directory with a collection of 60 rows; return the id of the directory."""
    shard = open_one_of(path)
    await created(shard)
    await put(shard)
    directory = (await report_of(shard)).directory
    await shard.close()
    return directory


def words_directory(path: Path) -> Path:
    return path / "collections" / "words"


# ---- the stages of a create ---------------------------------------------------------------------


async def test_a_staged_create_takes_writes_once_it_is_complete(shard: LocalShard) -> None:
    await shard.create_collection(config_of(), call=STAGED)
    own, other = await members_of(shard)
    for stage in (Stage.CREATED, Stage.KNOWN):
        await shard.settle(settle(stage, own, other))
        assert (await words_of(shard)).stage is stage
        with pytest.raises(ShardUnavailable, match="is being created"):
            await put(shard)
        with pytest.raises(ShardUnavailable, match="is being created"):
            await shard.delete(DeleteRequest(collection="words", ids=CORPUS.ids))
    await shard.settle(settle(Stage.COMPLETE, own, other))
    await put(shard)
    await shard.settle(settle(Stage.KNOWN, own, other))  # late
    words = await words_of(shard)
    assert (words.stage, words.members) == (Stage.COMPLETE, (own, other))


async def test_stage_and_members_survive_a_restart(tmp_path: Path) -> None:
    shard = open_one_of(tmp_path)
    await shard.create_collection(config_of(), call=STAGED)
    members = await members_of(shard)
    await shard.settle(settle(Stage.KNOWN, *members))
    await shard.close()
    shard = open_one_of(tmp_path)
    words = await words_of(shard)
    assert (words.stage, words.members) == (Stage.KNOWN, members)
    await shard.close()


async def test_a_create_that_is_not_staged_is_complete_and_completes(shard: LocalShard) -> None:
    await shard.create_collection(config_of("plain"))
    await shard.create_collection(config_of(), call=STAGED)
    await shard.create_collection(config_of(), call=replace(STAGED, staged=False))
    stages = {each.name: each.stage for each in (await report_of(shard)).collections}
    assert stages == {"plain": Stage.COMPLETE, "words": Stage.COMPLETE}
    await put(shard)


async def test_a_settle_that_is_not_meant_changes_nothing(shard: LocalShard) -> None:
    await shard.create_collection(config_of(), call=STAGED)
    own, other = await members_of(shard)
    with pytest.raises(ShardMissing):
        await shard.settle(settle(Stage.KNOWN, replace(own, directory="another"), other))
    with pytest.raises(IncarnationMismatch):
        await shard.settle(settle(Stage.KNOWN, own, other, incarnation="second"))
    with pytest.raises(InvalidParameter, match="this is shard 0"):
        await shard.settle(replace(settle(Stage.KNOWN, own, other), shard=1))
    with pytest.raises(CollectionNotFound):
        await shard.settle(replace(settle(Stage.KNOWN, own, other), collection="absent"))
    words = await words_of(shard)
    assert (words.stage, words.members) == (Stage.CREATED, ())


# ---- the report ---------------------------------------------------------------------------------


async def test_the_version_of_a_report_grows_with_each_change_only(shard: LocalShard) -> None:
    versions = [(await report_of(shard)).version]

    async def look() -> None:
        versions.append((await report_of(shard)).version)

    await created(shard)
    await look()
    await look()
    await put(shard)
    await look()
    await look()
    await shard.drop_collection("words")
    await look()
    await look()
    grew = [after > before for before, after in pairwise(versions)]
    assert grew == [True, False, True, False, True, False]


async def test_a_report_states_what_is_durable_and_who_wrote_it(tmp_path: Path) -> None:
    shard = open_one_of(tmp_path)
    await created(shard)
    await put(shard, 0, 20)
    first = await report_of(shard)
    await shard.close()
    shard = open_one_of(tmp_path)
    await put(shard, 20, 60)
    await shard.delete(DeleteRequest(collection="words", ids=CORPUS.ids[:5]))
    second = await report_of(shard)
    assert (first.opens, second.opens) == (1, 2)
    assert first.directory == second.directory
    assert first.session != second.session
    (words,) = second.collections
    assert words.sessions.first_sequences == (1, 2)
    assert words.sessions.sessions == (first.session, second.session)
    assert (words.sequence, words.accepted, words.live) == (3, 60, 55)
    assert words.sum != bytes(16)
    await shard.close()


async def test_a_drop_leaves_a_tombstone_until_it_may_be_forgotten(shard: LocalShard) -> None:
    await created(shard)
    await shard.drop_collection("words")
    assert (await words_of(shard)).state is CollectionState.DROPPED
    with pytest.raises(IncarnationMismatch, match="was dropped"):
        await shard.create_collection(config_of(), call=STAGED)
    await shard.create_collection(config_of(), call=replace(STAGED, incarnation="second"))
    await report_of(shard, forget="second")  # it is live
    report = await report_of(shard, forget="first")
    assert [(each.incarnation, each.state) for each in report.collections] == [
        ("second", CollectionState.LIVE)
    ]


async def test_a_dropped_collection_that_an_old_disk_brings_back_has_its_tombstone_again(
    tmp_path: Path,
) -> None:
    shard = open_one_of(tmp_path)
    members = await created(shard)
    await shard.drop_collection("words")
    await report_of(shard, forget="first")
    await shard.close()
    disk = FailingDisk()
    shard = open_one_of(tmp_path, disk=disk)
    assert (await report_of(shard)).collections == ()
    [words] = report_by(1).collections
    dropped = report_by(1, collections=(replace(words, state=CollectionState.DROPPED),))
    assert (await report_of(shard, dropped)).collections == ()
    with pytest.raises(IncarnationMismatch, match="was dropped"):
        await shard.create_collection(config_of(), call=STAGED)
    await shard.accept_loss(accepting(loss_of(members)))
    assert await shard.list_collections() == []
    disk.fail("write")
    assert (await report_of(shard, report_by(1))).collections == ()
    report = await report_of(shard)
    assert [(each.name, each.incarnation, each.state) for each in report.collections] == [
        ("words", "first", CollectionState.DROPPED)
    ]
    assert (await report_of(shard, forget="first")).collections == ()
    await shard.close()


async def test_a_copy_of_a_collection_that_all_have_dropped_is_the_business_of_no_other_shard(
    tmp_path: Path,
) -> None:
    await closed_with_words(tmp_path)
    copy = tmp_path.with_name("copy")
    shutil.copytree(words_directory(tmp_path), copy)
    shard = open_one_of(tmp_path)
    await shard.drop_collection("words")
    await report_of(shard, forget="first")
    await shard.close()
    copy.rename(words_directory(tmp_path))
    shard = open_one_of(tmp_path)
    assert "a copy of a collection that was dropped" in (await shard.problems())[0].text
    assert (await report_of(shard)).collections == ()
    await shard.close()


# ---- what is remembered of others ---------------------------------------------------------------


def report_by(shard: int, **changes: object) -> ShardReport:
    words = CollectionReport(
        name="words",
        incarnation="first",
        state=CollectionState.LIVE,
        stage=Stage.COMPLETE,
        sequence=7,
        accepted=70,
        live=60,
        sum=bytes(range(16)),
    )
    report = ShardReport(
        cluster="cluster",
        shard=shard,
        directory=f"directory-{shard}",
        life=1,
        opens=3,
        session=99,
        collections=(words,),
    )
    return replace(report, **changes)  # type: ignore[arg-type]  # of a test


async def test_what_others_have_is_remembered_over_a_restart(tmp_path: Path) -> None:
    shard = open_one_of(tmp_path, THREE)
    await shard.create_collection(config_of(), call=Call(incarnation="first"))
    await report_of(shard, report_by(1), report_by(2, cluster="of somebody else"))
    await shard.close()
    shard = open_one_of(tmp_path, THREE)
    report = await report_of(shard)
    assert report.statements == (
        Statement(
            shard=1,
            incarnation="first",
            life=1,
            sequence=7,
            session=0,
            accepted=70,
            live=60,
            sum=bytes(range(16)),
        ),
    )
    assert report.seen == (
        SeenDirectory(shard=1, directory="directory-1", life=1, opens=3, session=99),
    )
    await shard.drop_collection("words")
    assert (await report_of(shard, report_by(2))).statements == ()
    await shard.close()


@pytest.mark.parametrize(("kept", "witnessed"), [(4, {0, 1, 2, 4}), (3, {4, 0})])
async def test_a_shard_is_a_witness_of_all_others_or_with_many_collections_of_the_two_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, witnessed: set[int]
) -> None:
    monkeypatch.setattr(membership, "STATEMENTS_MAX", kept)
    shard = open_one_of(tmp_path, identity_of(3, 5, ALL))
    await shard.create_collection(config_of(), call=Call(incarnation="first"))
    report = await report_of(shard, *(report_by(other) for other in (0, 1, 2, 4)))
    assert {each.shard for each in report.statements} == witnessed
    assert {each.shard for each in report.seen} == {0, 1, 2, 4}
    await shard.close()


async def test_an_exchange_without_news_writes_nothing(tmp_path: Path) -> None:
    disk = FailingDisk()
    shard = open_one_of(tmp_path, disk=disk)
    await shard.create_collection(config_of(), call=Call(incarnation="first"))
    await report_of(shard, report_by(1))
    written = disk.counts["write"]
    await report_of(shard, report_by(1, version=8))
    await report_of(shard)
    assert disk.counts["write"] == written
    await shard.close()


async def test_what_a_disk_failed_to_keep_is_kept_by_the_next_exchange(tmp_path: Path) -> None:
    disk = FailingDisk()
    shard = open_one_of(tmp_path, disk=disk)
    await shard.create_collection(config_of(), call=Call(incarnation="first"))
    disk.fail("write")
    with capture_logs() as logs:
        assert (await report_of(shard, report_by(1))).statements
    assert [log["event"] for log in logs] == ["witness file not written"]
    await report_of(shard)
    await shard.close()
    shard = open_one_of(tmp_path)
    assert (await report_of(shard)).statements
    await shard.close()


async def test_a_damaged_witness_file_is_ignored_and_logged(tmp_path: Path) -> None:
    shard = open_one_of(tmp_path)
    await shard.create_collection(config_of(), call=Call(incarnation="first"))
    await report_of(shard, report_by(1))
    await shard.close()
    file = tmp_path / "witness.json"
    file.write_text(file.read_text().replace('"sequence":7', '"sequence":8'))
    with capture_logs() as logs:
        shard = open_one_of(tmp_path)
    assert "witness file ignored" in {log["event"] for log in logs}
    assert (await report_of(shard)).statements == ()
    await shard.close()


# ---- tokens -------------------------------------------------------------------------------------


def search_with(token: Token) -> SearchRequest:
    return SearchRequest(collection="words", queries=CORPUS.vectors[:1], k=1, token=token)


async def test_a_token_of_lost_writes_is_refused_though_its_number_is_used_again(
    tmp_path: Path,
) -> None:
    directory, copy = tmp_path / "data", tmp_path / "copy"
    shard = open_one_of(directory)
    await created(shard)
    kept = await put(shard, 0, 10)
    await shard.close()
    shutil.copytree(directory, copy)
    shard = open_one_of(directory)
    lost = await put(shard, 10, 20)
    await shard.search(search_with(lost))
    await shard.close()
    shard = open_one_of(copy)  # an older copy of it
    with pytest.raises(WritesLost, match="write 2 of shard 0"):
        await shard.search(search_with(lost))
    again = await put(shard, 30, 40)
    assert again.sequences == lost.sequences
    with pytest.raises(WritesLost, match="write 2 of shard 0"):
        await shard.search(search_with(lost))
    for token in (kept, again, replace(lost, sessions={})):  # the last: of an earlier release
        await shard.search(search_with(token))
    with pytest.raises(InvalidParameter, match="names write 9"):
        await shard.search(search_with(replace(kept, sequences={0: 9}, sessions={})))
    await shard.close()


# ---- what is lost or foreign --------------------------------------------------------------------


async def test_a_lost_collection_is_named_and_never_created_on_an_empty_directory(
    tmp_path: Path,
) -> None:
    await closed_with_words(tmp_path)
    shutil.rmtree(words_directory(tmp_path))
    shard = open_one_of(tmp_path)
    words = await words_of(shard)
    assert (words.state, words.incarnation) == (CollectionState.LOST, "first")
    for call in (Call(), STAGED, Call(incarnation="second")):
        with pytest.raises((ShardMissing, IncarnationMismatch)):
            await shard.create_collection(config_of(), call=call)
    for lost in (
        shard.count(CountRequest(collection="words")),
        shard.get(GetRequest(collection="words", ids=CORPUS.ids[:1])),
        shard.describe("words"),
        put(shard),
    ):
        with pytest.raises(ShardMissing, match="its directory is gone"):
            await lost
    with pytest.raises(CollectionNotFound):
        await shard.settle(settle(Stage.COMPLETE))
    (problem,) = await shard.problems()
    assert (problem.kind, problem.collection) == (ProblemKind.MISSING, "words")
    assert await shard.list_collections() == []
    await shard.drop_collection("words")
    await shard.create_collection(config_of())
    assert await shard.problems() == []
    await shard.close()


async def test_exchanged_collections_are_foreign_and_untouched(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        await closed_with_words(path)
    (a / "collections").rename(tmp_path / "apart")
    (b / "collections").rename(a / "collections")
    (tmp_path / "apart").rename(b / "collections")
    files = {file.name: file.read_bytes() for file in words_directory(a).iterdir()}
    shard = open_one_of(a)
    words = await words_of(shard)
    assert (words.state, words.incarnation) == (CollectionState.FOREIGN, "first")
    assert "another data directory" in words.reason
    with pytest.raises(ShardMissing, match="another data directory"):
        await put(shard)
    with pytest.raises(ShardMissing, match="another data directory"):
        await shard.create_collection(config_of())
    await shard.close()
    after = {file.name: file.read_bytes() for file in words_directory(a).iterdir()}
    assert {name: after[name] for name in files} == files
    (a / "collections").rename(tmp_path / "apart")
    (b / "collections").rename(a / "collections")
    shard = open_one_of(a)
    assert await shard.count(CountRequest(collection="words")) == 60
    await shard.close()


async def test_dropping_a_foreign_collection_keeps_files_of_another_incarnation(
    tmp_path: Path,
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    await closed_with_words(a)
    shard = open_one_of(b)
    await shard.create_collection(config_of(), call=Call(incarnation="second"))
    await shard.close()
    shutil.rmtree(words_directory(a))
    words_directory(b).rename(words_directory(a))
    shard = open_one_of(a)
    assert (await words_of(shard)).state is CollectionState.FOREIGN
    await shard.drop_collection("words")
    assert (await words_of(shard)).state is CollectionState.DROPPED
    (problem,) = await shard.problems()
    assert "words.damaged keeps files" in problem.text
    assert (words_directory(a).with_name("words.damaged") / "store.db").exists()
    await shard.close()


# ---- accepted losses ----------------------------------------------------------------------------


def loss_of(members: tuple[Member, ...], **changes: object) -> AcceptedLoss:
    loss = AcceptedLoss(
        collection="words",
        incarnation="first",
        reason="it is gone",
        config=config_of(),
        witnessed_sequence=3,
        witnessed_accepted=100,
        witnessed_live=90,
        members=members,
    )
    return replace(loss, **changes)  # type: ignore[arg-type]  # of a test


def accepting(*losses: AcceptedLoss, life: int = 2) -> AcceptLossRequest:
    return AcceptLossRequest(shard=0, accept=True, losses=losses, life=life)


async def test_accepting_a_loss_makes_an_empty_collection_and_counts_what_is_lost(
    tmp_path: Path,
) -> None:
    directory = await closed_with_words(tmp_path)
    shutil.rmtree(words_directory(tmp_path))
    shard = open_one_of(tmp_path)
    members = (
        Member(shard=0, directory=directory, life=1),
        Member(shard=1, directory="other", life=1),
    )
    request = accepting(loss_of(members))
    shown = await shard.accept_loss(replace(request, accept=False))
    assert (shown.losses, shown.life) == (request.losses, 1)
    assert (await words_of(shard)).state is CollectionState.LOST
    for _ in range(2):  # it may be repeated
        assert (await shard.accept_loss(request)).life == 2
        report = await report_of(shard)
        (words,) = report.collections
        assert (report.life, report.directory) == (2, directory)
        assert (words.incarnation, words.state) == ("first", CollectionState.LIVE)
        assert (words.stage, words.accepted) == (Stage.COMPLETE, 100)
        assert words.members == (replace(members[0], life=2), members[1])
    ledger = (await shard.describe("words")).ledger
    assert (ledger.accepted, ledger.lost, ledger.live) == (100, 100, 0)
    await put(shard)
    assert await shard.problems() == []
    await shard.close()
    shard = open_one_of(tmp_path)
    ledger = (await shard.describe("words")).ledger
    assert (ledger.accepted, ledger.lost, ledger.live) == (160, 100, 60)
    assert ledger.adds_up
    assert (await report_of(shard)).life == 2
    await shard.close()


async def test_an_older_copy_keeps_its_rows_and_counts_the_difference(shard: LocalShard) -> None:
    members = await created(shard)
    await put(shard)
    for _ in range(2):
        await shard.accept_loss(accepting(loss_of(members)))
    ledger = (await shard.describe("words")).ledger
    assert (ledger.accepted, ledger.lost, ledger.live) == (100, 40, 60)
    assert (await words_of(shard)).members == (replace(members[0], life=2), members[1])


async def test_a_loss_without_a_witness_counts_nothing(tmp_path: Path) -> None:
    await closed_with_words(tmp_path)
    shutil.rmtree(words_directory(tmp_path))
    shard = open_one_of(tmp_path)
    unknown = loss_of((), witnessed_accepted=None, stage=Stage.CREATED)
    await shard.accept_loss(accepting(unknown))
    words = await words_of(shard)
    assert (words.accepted, words.stage, words.members) == (0, Stage.CREATED, ())
    await shard.close()


@pytest.mark.parametrize("harm", ["damaged", "foreign"])
async def test_files_that_are_replaced_are_kept_at_most_two_and_named(
    tmp_path: Path, harm: str
) -> None:
    await closed_with_words(tmp_path / "data")
    await closed_with_words(tmp_path / "other")
    store = words_directory(tmp_path / "data") / "store.db"
    for round_ in range(3):
        if harm == "damaged":
            store.write_bytes(b"damaged" * 1_000)
        else:
            shutil.copytree(words_directory(tmp_path / "other"), store.parent, dirs_exist_ok=True)
        with capture_logs():  # tracebacks take long to print
            shard = open_one_of(tmp_path / "data")
        request = accepting(loss_of(()), life=round_ + 2)
        if round_ == 2:
            with pytest.raises(CollectionDamaged, match=r"words\.damaged-2 are there already"):
                await shard.accept_loss(request)
            assert (await report_of(shard)).life == 3
        else:
            await shard.accept_loss(request)
            assert await shard.count(CountRequest(collection="words")) == 0
            (described,) = (await shard.describe("words")).shards
            assert described.kept_files.count("keeps files") == round_ + 1
        await shard.close()
    with capture_logs():
        shard = open_one_of(tmp_path / "data")
    kept = [each.text for each in await shard.problems() if "keeps files" in each.text]
    assert len(kept) == 2
    shutil.rmtree(store.parent.with_name("words.damaged"))
    kept = [each.text for each in await shard.problems() if "keeps files" in each.text]
    assert len(kept) == 1
    await shard.close()


async def test_each_step_of_accepting_a_loss_may_fail_and_be_repeated(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    directory = await closed_with_words(whole)
    await closed_with_words(tmp_path / "other")
    shutil.rmtree(words_directory(whole))
    shutil.copytree(words_directory(tmp_path / "other"), words_directory(whole))
    members = (Member(shard=0, directory=directory, life=1),)
    steps = 0
    for kind in ("rename", "make_directory", "sync_directory", "commit", "write", "sync"):
        for after in range(20):
            path = tmp_path / f"{kind}-{after}"
            shutil.copytree(whole, path)
            disk = FailingDisk()
            shard = open_one_of(path, disk=disk)
            disk.fail(kind, after=after)
            try:
                await shard.accept_loss(accepting(loss_of(members)))
            except Exception:
                steps += 1
                failed = True
            else:
                failed = False
            await shard.close()
            shard = open_one_of(path)
            report = await report_of(shard)
            await shard.accept_loss(accepting(loss_of(members)))
            words = await words_of(shard)
            assert (words.state, words.accepted) == (CollectionState.LIVE, 100)
            assert len(await shard.problems()) == 1  # the files that are kept, once
            await shard.close()
            shutil.rmtree(path)
            if not failed:
                assert report.life == 2
                break
    assert steps > 10


async def test_a_dropped_collection_is_not_made_again(shard: LocalShard) -> None:
    members = await created(shard)
    await shard.drop_collection("words")
    await shard.accept_loss(accepting(loss_of(members)))
    assert (await words_of(shard)).state is CollectionState.DROPPED
    await shard.create_collection(config_of(), call=Call(incarnation="second"))
    await shard.accept_loss(accepting(loss_of(members), life=3))
    assert await shard.list_collections() == [
        each for each in await shard.list_collections() if each.incarnation == "second"
    ]
    with pytest.raises(IncarnationMismatch):
        await shard.accept_loss(accepting(loss_of(members, incarnation="third"), life=4))


async def test_a_shard_alone_accepts_its_own_losses(tmp_path: Path) -> None:
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    await put(shard)
    assert (await shard.accept_loss(AcceptLossRequest(shard=0, accept=True))).losses == ()
    await shard.close()
    (row_file,) = words_directory(tmp_path).glob("rows-*.f32")
    row_file.unlink()
    shard = open_shard(tmp_path)
    await shard.accept_loss(AcceptLossRequest(shard=0, accept=True))
    assert await shard.count(CountRequest(collection="words")) == 0
    await shard.close()


async def test_one_of_several_shards_leaves_the_losses_to_a_router(tmp_path: Path) -> None:
    await closed_with_words(tmp_path)
    (row_file,) = words_directory(tmp_path).glob("rows-*.f32")
    row_file.unlink()
    shard = open_one_of(tmp_path)
    assert (await shard.accept_loss(AcceptLossRequest(shard=0))).losses
    with pytest.raises(InvalidParameter, match="call a router"):
        await shard.accept_loss(AcceptLossRequest(shard=0, accept=True))
    with pytest.raises(InvalidParameter, match="this is shard 0"):
        await shard.accept_loss(AcceptLossRequest(shard=1))
    await shard.close()
