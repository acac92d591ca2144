"""Backups of a router over two shards: what they hold, what is copied again, what is refused."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backup.fleet import BEGUN, Fleet, manifest_of, rows_in
from tests.backup.samples import MANIFEST, put_manifest
from tests.shard.samples import config_of
from vectorshard.backup import copying
from vectorshard.backup.failures import BackupIncomplete, TargetError
from vectorshard.backup.layout import BACKUPS, RUNNING, backup_name, backup_names
from vectorshard.backup.manifest import Scope
from vectorshard.backup.targets import DirectoryTarget, Target
from vectorshard.shard.errors import (
    CollectionNotFound,
    CorruptData,
    InvalidParameter,
    ShardMissing,
    ShardUnavailable,
)
from vectorshard.shard.types import Call, TrainRequest


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some hundred rows be many blocks."""
    monkeypatch.setattr(copying, "READ_BYTES", 700)
    monkeypatch.setattr(copying, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(copying, "SMALL_BYTES", 1_000)


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Return a router over two shards with 300 rows."""
    fleet = await Fleet(tmp_path).open()
    await fleet.create()
    await fleet.put(range(300))
    yield fleet
    await fleet.server.close()


# ---- what it holds ------------------------------------------------------------------------------


async def test_a_backup_holds_every_live_row_and_says_what_it_is(fleet: Fleet) -> None:
    await fleet.put(range(50), seed=1)
    await fleet.delete(range(100, 130))
    await fleet.create(config_of("empty"))
    made = await fleet.back_up()
    manifest = manifest_of(fleet.target, made)
    assert rows_in(fleet.target, manifest) == fleet.rows
    assert rows_in(fleet.target, manifest, "empty") == {}
    assert manifest.complete
    assert (manifest.live, made.copied_rows) == (270, 270)
    assert (manifest.shards_total, manifest.version, manifest.previous) == (2, "test", "")
    assert manifest.begun == "2026-01-01T00:00:00Z" < manifest.ended
    assert made.name.startswith("00000001-20260101T000000Z-")
    words = manifest.collections[1]
    assert [each.shard for each in words.shards] == [0, 1]
    assert len({each.directory for each in words.shards}) == 2
    assert sum(each.ledger.accepted for each in words.shards) == 350
    assert words.config == config_of()
    assert list(fleet.target.list(RUNNING)) == []


async def test_the_next_backup_copies_what_is_new_and_lists_what_has_died(fleet: Fleet) -> None:
    first = await fleet.back_up()
    before = dict(fleet.rows)
    await fleet.put(range(290, 320), seed=2)
    await fleet.delete(range(0, 40))
    await fleet.reopen()
    fleet.compact()
    second = await fleet.back_up()
    manifest = manifest_of(fleet.target, second)
    assert rows_in(fleet.target, manifest) == fleet.rows
    assert rows_in(fleet.target, manifest_of(fleet.target, first)) == before
    assert manifest.previous == first.name
    assert 30 <= second.copied_rows <= 30 + 2 * 25, "the new rows, and two small blocks again"
    nothing = await fleet.back_up()
    assert nothing.copied_rows <= 2 * 25
    assert rows_in(fleet.target, nothing.manifest) == fleet.rows


async def test_all_is_copied_again_when_asked_and_when_a_disk_has_another_history(
    fleet: Fleet,
) -> None:
    first = await fleet.back_up()
    full = await fleet.back_up(full=True)
    assert full.copied_rows == 300
    assert not {*first.manifest.objects()} & {*full.manifest.objects()}
    await fleet.server.drop_collection("words")
    await fleet.create()
    fleet.rows.clear()
    await fleet.put(range(300), seed=3)
    again = await fleet.back_up()
    assert again.copied_rows == 300
    assert rows_in(fleet.target, again.manifest) == fleet.rows


async def test_an_older_copy_of_a_disk_is_not_continued(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.back_up()
    shard = fleet.shards[0]
    row_store = shard._collections.served["words"].collection.state.row_store
    row_store.sessions = type(row_store.sessions)(
        first_sequences=row_store.sessions.first_sequences,
        sessions=tuple(each ^ 1 for each in row_store.sessions.sessions),
    )
    made = await fleet.back_up()
    assert rows_in(fleet.target, made.manifest) == fleet.rows
    assert any("shard 0: copied as a whole" in note for note in made.notes)
    assert not any("shard 1: copied as a whole" in note for note in made.notes)


async def test_a_shard_is_copied_as_a_whole_once_most_of_its_blocks_is_dead(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "DEAD_ROWS_MIN", 10)
    await fleet.back_up()
    await fleet.delete(range(0, 250))
    made = await fleet.back_up()
    assert made.copied_rows == len(fleet.rows) == 50
    assert rows_in(fleet.target, made.manifest) == fleet.rows


async def test_many_dead_rows_are_an_object(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "INLINE_BYTES_MAX", 10)
    await fleet.back_up()
    await fleet.delete(range(0, 100, 3))
    made = await fleet.back_up()
    assert sum(name.endswith(".dead") for name in made.manifest.objects()) == 2
    assert rows_in(fleet.target, made.manifest) == fleet.rows


async def test_a_collection_that_is_named_is_alone_and_the_others_go_on_from_where_they_were(
    fleet: Fleet,
) -> None:
    await fleet.create(config_of("others"))
    await fleet.put(range(100), collection="others")
    first = await fleet.back_up()
    alone = await fleet.back_up(collections=("others",))
    assert [each.name for each in alone.manifest.collections] == ["others"]
    assert (first.manifest.scope, alone.manifest.scope) == (Scope.ALL, Scope.CHOSEN)
    both = await fleet.back_up()
    assert both.copied_rows <= 4 * 25
    assert both.manifest.previous == alone.name > first.name
    with pytest.raises(CollectionNotFound, match="'absent'"):
        await fleet.back_up(collections=("absent",))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.integers(0, 60), unique=True, min_size=1)),
        st.tuples(st.just("delete"), st.lists(st.integers(0, 60), unique=True, min_size=1)),
        st.tuples(st.sampled_from(["compact", "reopen", "back up", "full"]), st.just([])),
    ),
    max_size=10,
)


@settings(max_examples=6, deadline=None)
@given(OPERATIONS)
def test_the_newest_backup_is_what_lived_at_its_moment(
    operations: list[tuple[str, list[int]]],
) -> None:
    async def run(path: Path) -> None:
        fleet = await Fleet(path, shards_total=1).open()
        try:
            await fleet.create()
            held: list[tuple[Any, dict[int, tuple[bytes, bytes]]]] = []
            for seed, (operation, numbers) in enumerate([*operations, ("back up", [])]):
                if operation == "put":
                    await fleet.put(numbers, seed=seed)
                elif operation == "delete":
                    await fleet.delete(numbers)
                elif operation == "compact":
                    fleet.compact()
                elif operation == "reopen":
                    await fleet.reopen()
                else:
                    made = await fleet.back_up(full=operation == "full")
                    held.append((made, dict(fleet.rows)))
            for made, rows in held:
                assert rows_in(fleet.target, made.manifest) == rows
        finally:
            await fleet.server.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


# ---- what goes wrong ----------------------------------------------------------------------------


class Between:
    """Stands before a server, and lets a test do something before some calls."""

    def __init__(self, server: Any, before: Callable[[str, Any], Any]) -> None:
        self._server = server
        self._before = before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._server, name)
        if name not in ("open_copy", "read_copy", "list_collections"):
            return method

        async def called(*arguments: Any, call: Call) -> Any:
            pending = self._before(name, arguments[0] if arguments else None)
            if pending is not None:
                await pending
            return await method(*arguments, call=call)

        return called


async def test_writes_deletes_compactions_and_trainings_go_on_during_a_backup(
    fleet: Fleet,
) -> None:
    moments: dict[int, dict[int, tuple[bytes, bytes]]] = {}
    calls = 0

    async def disturb(name: str, request: Any) -> None:
        nonlocal calls
        calls += 1
        if name == "open_copy":
            moments[request.shard] = dict(fleet.rows)
            return
        await fleet.put(range(calls % 7, 300, 11), seed=calls)
        await fleet.delete(range(calls % 5, 300, 29))
        if calls % 6 == 2:
            fleet.compact()
        if calls % 6 == 4:
            await fleet.server.train(TrainRequest(collection="words", wait=True))

    made = await fleet.back_up(server=Between(fleet.server, disturb))
    assert calls > 10
    found = rows_in(fleet.target, made.manifest)
    for shard in (0, 1):
        there = {
            id_
            for id_ in moments[shard]
            if fleet.server._children.placement.shards_of(np.array([id_]))[0] == shard
        }
        assert {id_: found[id_] for id_ in there if id_ in found} == {
            id_: moments[shard][id_] for id_ in there
        }


async def test_a_shard_that_restarts_in_the_middle_goes_on_from_where_it_was(
    fleet: Fleet,
) -> None:
    reads = 0

    def end_copies(name: str, request: Any) -> None:
        nonlocal reads
        reads += name == "read_copy"
        if name == "read_copy" and reads in (3, 9):
            for shard in fleet.shards:
                shard._copies.close_all()

    made = await fleet.back_up(server=Between(fleet.server, end_copies))
    assert rows_in(fleet.target, made.manifest) == fleet.rows
    assert made.copied_rows == 300
    assert sum("copied again" in note for note in made.notes) == 2


async def test_a_shard_that_stays_away_is_named_or_left_out(fleet: Fleet) -> None:
    def away(name: str, request: Any) -> None:
        if name == "open_copy" and request.shard == 1:
            raise ShardUnavailable("shard 1 does not answer")

    server = Between(fleet.server, away)
    with pytest.raises(ShardUnavailable, match="shard 1 does not answer"):
        await fleet.back_up(server=server, patience_s=0.0)
    assert backup_names(fleet.target) == []
    made = await fleet.back_up(server=server, patience_s=0.0, partial=True)
    assert not made.manifest.complete
    assert [(each.collection, each.shard) for each in made.manifest.left_out] == [("words", 1)]
    found = rows_in(fleet.target, made.manifest)
    assert found.items() < fleet.rows.items()
    complete = await fleet.back_up()
    assert complete.copied_rows == 300, "a partial backup is not built on"


async def test_a_missing_shard_is_refused_at_once(fleet: Fleet) -> None:
    def missing(name: str, request: Any) -> None:
        if name == "open_copy" and request.shard == 1:
            raise ShardMissing("shard 1: its disk was lost")

    server = Between(fleet.server, missing)
    with pytest.raises(ShardMissing, match="shard 1: its disk was lost"):
        await fleet.back_up(server=server)
    made = await fleet.back_up(server=server, partial=True)
    assert made.manifest.left_out[0].reason == "shard 1: its disk was lost"


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda path: (path / "store.db").write_bytes(b"")])
async def test_a_collection_that_no_shard_can_list_is_not_left_out_in_silence(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    fleet = await Fleet(tmp_path, shards_total=1).open()
    try:
        await fleet.create()
        await fleet.create(config_of("other"))
        await fleet.put(range(20))
        await fleet.server.close()
        harm(tmp_path / "shard-0" / "collections" / "words")
        await fleet.open()
        with pytest.raises((BackupIncomplete, CorruptData), match="'words'"):
            await fleet.back_up()
        made = (await fleet.back_up(partial=True)).manifest
        assert [(each.collection, each.shard) for each in made.left_out] == [("words", 0)]
        assert [each.name for each in made.collections] == ["other"]
        assert (await fleet.back_up(collections=("other",))).manifest.complete
        await fleet.server.drop_collection("words")
        assert (await fleet.back_up()).manifest.whole
    finally:
        await fleet.server.close()


async def test_a_shard_whose_disk_was_lost_is_refused_by_the_router(fleet: Fleet) -> None:
    await fleet.back_up()
    await fleet.server.close()
    shutil.rmtree(fleet.path / "shard-1")
    await fleet.open()
    with pytest.raises(ShardMissing, match="shard 1"):
        await fleet.back_up()
    made = await fleet.back_up(partial=True)
    assert [(each.collection, each.shard) for each in made.manifest.left_out] == [("words", 1)]
    assert made.copied_rows <= 25, "shard 0 goes on from its last backup"


async def test_damaged_rows_are_refused_by_number_or_left_out(fleet: Fleet) -> None:
    columns = fleet.shards[1]._collections.served["words"].collection.state.columns
    hashes = columns._content_hashes
    assert hashes is not None
    hashes[[2, 5]] ^= np.uint64(1)  # as if the rows differed
    with pytest.raises(BackupIncomplete, match=r"shard 1: damaged rows \(2, 5\)"):
        await fleet.back_up()
    made = await fleet.back_up(partial=True)
    [shard] = [each for each in made.manifest.collections[0].shards if each.damaged]
    assert (shard.shard, shard.damaged) == (1, (2, 5))
    assert not made.manifest.complete
    assert len(rows_in(fleet.target, made.manifest)) == made.manifest.live == 298


async def test_one_of_several_shards_is_no_server_of_a_backup(fleet: Fleet) -> None:
    with pytest.raises(InvalidParameter, match="one of 2 shards"):
        await fleet.back_up(server=fleet.shards[0])


async def test_a_collection_that_is_dropped_meanwhile_is_left_out_and_said(fleet: Fleet) -> None:
    await fleet.create(config_of("another"))
    dropped = False

    async def drop(name: str, request: Any) -> None:
        nonlocal dropped
        if name == "read_copy" and not dropped:
            dropped = True
            await fleet.server.drop_collection("words")

    made = await fleet.back_up(server=Between(fleet.server, drop))
    assert [each.name for each in made.manifest.collections] == ["another"]
    assert "words was dropped meanwhile" in made.notes[-1]
    assert made.manifest.complete


class FullTarget:
    """A target that fails after some blocks, and at every manifest."""

    def __init__(self, target: Target, left: int) -> None:
        self._target = target
        self._left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def put(self, name: str, contents: bytes, *, if_absent: bool = False) -> None:
        """Store an object, or fail."""
        self._left -= name.startswith("blocks/")
        if self._left < 0 or name.startswith(BACKUPS):
            raise TargetError("No space left on device")
        self._target.put(name, contents, if_absent=if_absent)


@pytest.mark.parametrize("left", [0, 3, 100])
async def test_a_backup_that_fails_anywhere_leaves_the_earlier_ones_whole(
    fleet: Fleet, left: int
) -> None:
    first = await fleet.back_up()
    before = dict(fleet.rows)
    await fleet.put(range(200, 450), seed=5)
    with pytest.raises(TargetError, match="No space left"):
        await fleet.back_up(FullTarget(fleet.target, left))
    assert backup_names(fleet.target) == [first.name]
    assert rows_in(fleet.target, manifest_of(fleet.target, first)) == before
    assert list(fleet.target.list(RUNNING)) == []
    second = await fleet.back_up()
    assert rows_in(fleet.target, second.manifest) == fleet.rows


async def test_shards_are_copied_at_once_if_asked(fleet: Fleet) -> None:
    made = await fleet.back_up(parallel=2)
    assert rows_in(fleet.target, made.manifest) == fleet.rows


async def test_backups_are_ordered_by_number_though_a_clock_goes_back(fleet: Fleet) -> None:
    first = await fleet.back_up()
    assert first.notes == ()
    fleet.backups = itertools.count(-2)
    await fleet.put(range(10), seed=9)
    second = await fleet.back_up()
    assert second.manifest.previous == first.name
    [note] = second.notes
    assert note.startswith("the clock here says 2025-12-30T00:00:00Z, which is before the end of ")
    assert backup_names(fleet.target) == [second.name, first.name]
    third = await fleet.back_up()
    assert third.notes == ()
    assert [each.manifest.number for each in (first, second, third)] == [1, 2, 3]


async def test_two_backups_at_once_get_two_numbers_and_none_is_used_twice(fleet: Fleet) -> None:
    made = await asyncio.gather(*(fleet.back_up(full=True) for _ in range(4)))
    assert sorted(each.manifest.number for each in made) == [1, 2, 3, 4]
    for each in made:
        fleet.target.delete(f"{BACKUPS}{each.name}.json")
    assert (await fleet.back_up()).manifest.number == 5


async def test_a_target_that_another_fleet_uses_is_said(fleet: Fleet) -> None:
    cluster = (await fleet.server.topology(call=Call())).cluster
    other = replace(MANIFEST, cluster=cluster, ended="2025-01-01T00:00:00Z")
    put_manifest(fleet.target, backup_name(7, BEGUN, "0000000a"), other)
    made = await fleet.back_up(full=True)
    assert made.manifest.number == 8
    assert "is of another fleet, of cluster " in made.notes[0]
    assert (await fleet.back_up()).notes == ()


async def test_a_backup_whose_manifest_is_damaged_is_not_built_on_and_named(fleet: Fleet) -> None:
    first, second = await fleet.back_up(), await fleet.back_up()
    (fleet.path / "target" / BACKUPS / f"{second.name}.json").write_bytes(b"")
    made = await fleet.back_up()
    assert (made.manifest.previous, len(made.notes)) == (first.name, 1)
    assert f"backup {second.name} is unreadable, and is not built on" in made.notes[0]
    assert rows_in(fleet.target, made.manifest) == fleet.rows


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"cut")])
async def test_a_backup_is_not_built_on_an_object_that_is_gone_or_cut(
    fleet: Fleet, harm: Callable[[Path], object]
) -> None:
    first = await fleet.back_up()
    victim = min(first.manifest.objects())
    harm(fleet.path / "target" / victim)
    made = await fleet.back_up()
    assert rows_in(fleet.target, made.manifest) == fleet.rows
    assert victim not in made.manifest.sizes()
    assert len(made.notes) == 1
    assert f"{first.name} is DAMAGED: {victim} is missing or has another size" in made.notes[0]
    assert made.copied_rows < 300, "the other shard goes on from where it was"
    assert (await fleet.back_up()).notes == ()


async def test_a_manifest_is_not_written_over_another(fleet: Fleet) -> None:
    made = await fleet.back_up()
    target = DirectoryTarget(fleet.path / "target", paced=False)
    assert [each.name for each in target.list(BACKUPS)] == [f"{BACKUPS}{made.name}.json"]
