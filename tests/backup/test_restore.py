"""A restore: what it builds, on any number of shards, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backup.made import FIRST, SECOND, Fleet, back_up, fleet
from vectorshard.backup.building import Destination, building
from vectorshard.backup.failures import BackupDamaged, BackupIncomplete, DirectoryNotEmpty
from vectorshard.backup.manifest import LeftOut, Manifest
from vectorshard.backup.restore import (
    Backup,
    Restore,
    Restored,
    ShardPlace,
    absences,
    require_whole,
    wanted_of,
)
from vectorshard.backup.targets import DirectoryTarget, Target
from vectorshard.cli.embedded import open_embedded
from vectorshard.cli.fleet import EMBEDDED, identity_of
from vectorshard.shard.config import SLOTS_TOTAL, EngineConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import DataDirectoryError, DataDirectoryLocked, InvalidParameter
from vectorshard.shard.filters import Equals, Filter
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.restore_marker import RESTORING_FILE
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    Effort,
    FieldType,
    FilterField,
    GetRequest,
    IdArray,
    IdType,
    IndexConfig,
    Metric,
    SearchRequest,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

DIM = 8
ROWS = 300
QUIET = EngineConfig()
UNTRAINED = IndexConfig(min_training_size=1_000_000)
WORDS, PICTURES = "words", "pictures"
GERMAN = Equals("lang", "de")


def entry(name: str, id_type: IdType, metric: Metric) -> CollectionEntry:
    """Return a collection with a declared field."""
    config = CollectionConfig(
        name=name,
        dim=DIM,
        metric=metric,
        id_type=id_type,
        index=UNTRAINED,
        filter_fields=(FilterField("lang", FieldType.KEYWORD),),
    )
    return CollectionEntry(config=config, incarnation=f"old-{name}")


ENTRIES = (
    entry(WORDS, IdType.STRING, Metric.COSINE),
    entry(PICTURES, IdType.INT64, Metric.L2),
)


def ids_of(id_type: IdType, numbers: Sequence[int]) -> IdArray:
    """Return the ids of some numbers."""
    if id_type is IdType.INT64:
        return np.array(numbers, dtype=np.int64) * 7 - 50
    return np.array([f"wört-{number}" for number in numbers], dtype=object)


def write(written: Fleet, name: str, numbers: Sequence[int], seed: int) -> None:
    """Upsert rows, every third without metadata."""
    config = written.collections[name][0].entry.config
    drawn = np.random.default_rng(seed).standard_normal((len(numbers), DIM))
    langs = ("de", "en", "")
    written.upsert(
        UpsertRequest(
            collection=name,
            ids=ids_of(config.id_type, numbers),
            vectors=drawn.astype(np.float32),
            metadata=[
                metadata_from_mapping({"lang": lang, "n": number} if lang else {})
                for number in numbers
                for lang in (langs[number % 3],)
            ],
        )
    )


def two_backups(path: Path, target: Target, shards: int) -> Manifest:
    """Write two collections, back them up, change them, and back up what has changed."""
    with fleet(path, shards, *ENTRIES) as written:
        for name in (WORDS, PICTURES):
            write(written, name, range(ROWS), 1)
        first = back_up(target, FIRST, written)
        for name, changed in ((WORDS, 40), (PICTURES, 20)):
            config = written.collections[name][0].entry.config
            written.delete(name, ids_of(config.id_type, range(changed)))
            write(written, name, range(100, 100 + changed), 2)  # replaced
            write(written, name, range(10), 3)  # deleted, and written again
            write(written, name, range(ROWS, ROWS + 10), 4)
        return back_up(target, SECOND, written, first)


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    """An empty target."""
    return DirectoryTarget(tmp_path / "target", create=True, paced=False)


def places(data: Path, shards: int, cluster: str = "new") -> list[ShardPlace]:
    """Return the places of all shards of `serve`."""
    return [
        ShardPlace(path=data / EMBEDDED.format(shard), identity=identity_of(shard, shards, cluster))
        for shard in range(shards)
    ]


def restored(
    target: Target, data: Path, shards: int, asked: Sequence[str] = (), name: str = SECOND
) -> list[Restored]:
    """Restore a backup for `serve`."""
    manifest = Manifest.decode(target.get(f"backups/{name}.json"), name)
    backup = Backup(target=target, name=name, manifest=manifest)
    return Restore(backup, places(data, shards)).run(data, wanted_of(manifest, asked))


@dataclass(frozen=True)
class Seen:
    """What a router over a data directory answers of a collection."""

    hits: tuple[tuple[int | str, float], ...]
    filtered: tuple[tuple[int | str, float], ...]
    rows: Mapping[int | str, tuple[bytes, bytes]]
    live: int
    accepted: int
    incarnation: str
    restored_from: frozenset[str]


async def seen(data: Path, shards: int, names: Mapping[str, str]) -> dict[str, Seen]:
    """Return what `serve` answers of collections, each under the other name."""
    router = await open_embedded(data, shards, QUIET)
    try:
        assert not await router.problems()
        found = {}
        for name, title in names.items():
            described = await router.describe(name)
            queries = np.random.default_rng(9).standard_normal((5, DIM)).astype(np.float32)

            async def hits(
                filter_: Filter | None, name: str = name, queries: np.ndarray = queries
            ) -> tuple[tuple[int | str, float], ...]:
                result = await router.search(
                    SearchRequest(
                        collection=name,
                        queries=queries,
                        k=50,
                        effort=Effort(exact=True),
                        filter=filter_,
                    )
                )
                return tuple(
                    zip(result.hits.ids.tolist(), result.hits.scores.tolist(), strict=True)
                )

            every = ids_of(described.config.id_type, range(ROWS + 10))
            rows = await router.get(GetRequest(collection=name, ids=every))
            assert rows.vectors is not None
            assert rows.metadata is not None
            found[title] = Seen(
                hits=await hits(None),
                filtered=await hits(GERMAN),
                rows={
                    id_: (vector.tobytes(), struct)
                    for id_, vector, struct in zip(
                        rows.ids.tolist(), rows.vectors, rows.metadata, strict=True
                    )
                },
                live=described.ledger.live,
                accepted=described.ledger.accepted,
                incarnation=described.incarnation,
                restored_from=frozenset(shard.restored_from for shard in described.shards),
            )
        return found
    finally:
        await router.close()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 2)])
async def test_a_restored_fleet_answers_as_the_one_before(
    tmp_path: Path, target: DirectoryTarget, before: int, after: int
) -> None:
    manifest = two_backups(tmp_path / "old", target, before)
    data = tmp_path / "new"
    found = restored(target, data, after)
    for each, stored in zip(found, manifest.collections, strict=True):
        assert each.sum_built == each.sum_read == bytes.fromhex(stored.content_sum)
        assert sum(each.rows.values()) == stored.live
        assert len(each.rows) == after
    names = {name: name for name in (WORDS, PICTURES)}
    old = await seen(tmp_path / "old", before, names)
    new = await seen(data, after, names)
    for name in names:
        assert new[name].hits == old[name].hits
        assert new[name].filtered == old[name].filtered
        assert new[name].rows == old[name].rows
        assert new[name].live == new[name].accepted == old[name].live, "the ledger starts again"
        assert new[name].incarnation != old[name].incarnation
        assert new[name].restored_from == {SECOND}
    assert not (data / RESTORING_FILE).exists()


async def test_the_earlier_backup_is_still_what_it_was(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    two_backups(tmp_path / "old", target, 1)
    restored(target, tmp_path / "new", 2, name=FIRST)
    found = await seen(tmp_path / "new", 2, {WORDS: WORDS})
    assert found[WORDS].live == ROWS


async def test_one_collection_is_restored_also_under_another_name(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    two_backups(tmp_path / "old", target, 1)
    restored(target, tmp_path / "new", 1, [f"{WORDS}=w2", f"{WORDS}=w3"])
    old = await seen(tmp_path / "old", 1, {WORDS: WORDS})
    new = await seen(tmp_path / "new", 1, {"w2": "w2", "w3": "w3"})
    assert new["w2"].hits == new["w3"].hits == old[WORDS].hits
    assert new["w2"].incarnation != new["w3"].incarnation
    one = sorted(path.name for path in (tmp_path / "new/shard-0/collections").iterdir())
    assert one == ["w2", "w3"]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (["nowhere"], "has no collection 'nowhere'; it has: pictures, words"),
        ([f"{WORDS}=../{WORDS}"], "'../words' is not a name of a collection"),
        ([WORDS, WORDS], "two collections would be called 'words'"),
        ([f"{WORDS}={PICTURES}", PICTURES], "two collections would be called 'pictures'"),
    ],
)
def test_collections_that_are_asked_for_exist_and_differ(
    tmp_path: Path, target: DirectoryTarget, asked: list[str], text: str
) -> None:
    manifest = two_backups(tmp_path / "old", target, 1)
    with pytest.raises(InvalidParameter, match=text):
        wanted_of(manifest, asked)


async def test_shards_that_are_restored_one_by_one_are_one_fleet(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    """Each machine builds its directory alone: identities follow from the name of the cluster."""
    manifest = two_backups(tmp_path / "old", target, 2)
    backup = Backup(target=target, name=SECOND, manifest=manifest)
    data, rows = tmp_path / "new", 0
    data.mkdir()
    for place in places(data, 3, "grown"):
        found = Restore(backup, [place]).run(place.path, wanted_of(manifest, [WORDS]))
        assert found[0].sum_read == bytes.fromhex(manifest.collections[0].content_sum)
        rows += sum(found[0].rows.values())
    assert rows == manifest.collections[0].live
    new = await seen(data, 3, {WORDS: WORDS})
    old = await seen(tmp_path / "old", 2, {WORDS: WORDS})
    assert new[WORDS].hits == old[WORDS].hits


def identities(data: Path) -> tuple[str, ...]:
    """Return what a shard's directory and a collection are called."""
    identity = identity_of(0, 1, "")
    with closing(DataDirectory.open(Disk(), data / "shard-0", identity)) as directory:
        path = directory.collection_directory(WORDS)
        with closing(Collection.open(Disk(), path, 0, QUIET)) as collection:
            membership = collection.state.row_store.membership
            assert membership.directory == directory.directory
            assert [each.directory for each in membership.members] == [directory.directory]
            return directory.directory, collection.entry.incarnation


def test_every_restore_has_identities_of_its_own_cluster(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    manifest = two_backups(tmp_path / "old", target, 1)
    backup = Backup(target=target, name=SECOND, manifest=manifest)
    found = set()
    for cluster in ("one", "two"):
        data = tmp_path / cluster
        Restore(backup, places(data, 1, cluster)).run(data, wanted_of(manifest, []))
        found |= set(identities(data))
    assert len(found) == 4


@pytest.mark.parametrize("present", ["notes.txt", "shard-0", "shard.json"])
def test_a_directory_that_is_not_empty_is_refused_and_stays(
    tmp_path: Path, target: DirectoryTarget, present: str
) -> None:
    two_backups(tmp_path / "old", target, 1)
    data = tmp_path / "new"
    data.mkdir()
    (data / "lost+found").mkdir()
    (data / present).touch()
    with pytest.raises(DirectoryNotEmpty, match=present):
        restored(target, data, 1)
    assert sorted(path.name for path in data.iterdir()) == sorted(["lost+found", present])
    (data / present).unlink()
    restored(target, data, 1)


class Stop(Exception):
    """What ends a restore in the middle."""


async def test_a_restore_that_did_not_end_is_not_served_and_is_repeated(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    manifest = two_backups(tmp_path / "old", target, 1)
    backup = Backup(target=target, name=SECOND, manifest=manifest)
    data, wanted, calls = tmp_path / "new", wanted_of(manifest, []), 0

    def stop(_rows: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Stop

    with pytest.raises(Stop):
        Restore(backup, places(data, 3)).run(data, wanted, advance=stop)
    with pytest.raises(DataDirectoryError, match="has not ended"):
        await open_embedded(data, 3, QUIET)
    (data / "notes").touch()
    with pytest.raises(DirectoryNotEmpty, match="notes"):
        restored(target, data, 2)
    (data / "notes").unlink()
    restored(target, data, 2)
    assert sorted(path.name for path in data.iterdir()) == ["shard-0", "shard-1"]
    assert await seen(data, 2, {WORDS: WORDS})


def test_two_restores_do_not_build_in_one_directory(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    manifest = two_backups(tmp_path / "old", target, 1)
    backup = Backup(target=target, name=SECOND, manifest=manifest)
    data = tmp_path / "new"

    def again(_rows: int) -> None:
        with pytest.raises(DataDirectoryLocked):
            restored(target, data, 1)

    Restore(backup, places(data, 1)).run(data, wanted_of(manifest, []), advance=again)
    assert not (data / RESTORING_FILE).exists()


class EndsMeanwhile(Disk):
    """Another restore ends, and removes its marker, after this one has opened that."""

    def open(self, path: Path) -> DiskFile:
        """Open the file, and let the other restore end."""
        opened = super().open(path)
        if path.name == RESTORING_FILE:
            path.unlink()
        return opened


def test_what_a_restore_has_built_stays_if_another_had_waited_for_its_end(tmp_path: Path) -> None:
    built = tmp_path / "shard-0" / "shard.json"
    built.parent.mkdir()
    built.write_text("built")
    (tmp_path / RESTORING_FILE).touch()
    destination = Destination(disk=EndsMeanwhile(), data=tmp_path, backup=SECOND)
    with pytest.raises(DirectoryNotEmpty, match="shard-0"), building(destination):
        pass
    assert built.read_text() == "built"


@pytest.mark.parametrize("harm", ["flipped", "cut", "missing", "swapped"])
def test_a_damaged_backup_is_not_restored(
    tmp_path: Path, target: DirectoryTarget, harm: str
) -> None:
    manifest = two_backups(tmp_path / "old", target, 2)
    block, other = list(manifest.blocks())[:2]
    path = tmp_path / "target" / block.name
    stored = bytearray(path.read_bytes())
    if harm == "flipped":
        stored[len(stored) // 2] ^= 1
        path.write_bytes(stored)
    elif harm == "cut":
        path.write_bytes(stored[:-9])
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes((tmp_path / "target" / other.name).read_bytes())
    with pytest.raises(BackupDamaged, match=block.name):
        restored(target, tmp_path / "new", 1)
    assert (tmp_path / "new" / RESTORING_FILE).exists(), "a server would start on half of it"


def test_what_a_partial_backup_lacks_is_said_and_refused(
    tmp_path: Path, target: DirectoryTarget
) -> None:
    lacking = LeftOut(collection=WORDS, shard=1, reason="shard 1 does not answer")
    with fleet(tmp_path / "old", 2, *ENTRIES) as written:
        for name in (WORDS, PICTURES):
            write(written, name, range(ROWS), 1)
        manifest = back_up(target, SECOND, written, left_out=[lacking])
    backup = Backup(target=target, name=SECOND, manifest=manifest)
    absent = absences(manifest, wanted_of(manifest, []), everything=True)
    assert absent == ["collection 'words', shard 1: shard 1 does not answer"]
    with pytest.raises(BackupIncomplete, match="does not answer"):
        require_whole(backup, absent)
    assert not absences(manifest, wanted_of(manifest, [PICTURES]), everything=False)
    found = restored(target, tmp_path / "new", 3)
    assert sum(found[0].rows.values()) == manifest.collections[0].live < ROWS
    assert sum(found[1].rows.values()) == ROWS


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 5]),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60, unique=True)
    | st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=60, unique=True),
)
def test_each_row_goes_to_the_shard_that_owns_its_slot(
    tmp_path_factory: pytest.TempPathFactory, shards: int, ids: list[int | str]
) -> None:
    path = tmp_path_factory.mktemp("placement")
    target = DirectoryTarget(path / "target", create=True, paced=False)
    strings = bool(ids) and isinstance(ids[0], str)
    stored = entry(WORDS, IdType.STRING if strings else IdType.INT64, Metric.L2)
    with fleet(path / "old", 1, stored) as written:
        array = np.array(ids, dtype=object if strings else np.int64)
        vectors = np.arange(len(ids) * DIM, dtype=np.float32).reshape(-1, DIM)
        if ids:
            written.upsert(UpsertRequest(collection=WORDS, ids=array, vectors=vectors))
        back_up(target, SECOND, written, block_rows=7)
    restored(target, path / "new", shards)
    found = set()
    for place in places(path / "new", shards):
        with closing(DataDirectory.open(Disk(), place.path, place.identity)) as directory:
            where = directory.collection_directory(WORDS)
            with closing(Collection.open(Disk(), where, 0, QUIET)) as collection:
                snapshot = collection.snapshot
                here = snapshot.ids_of(np.arange(snapshot.rows))
                first, last = place.identity.slots[0]
                slots = slots_of(here)
                assert ((first <= slots) & (slots <= last)).all()
                found |= set(here.tolist())
    assert found == set(ids)
    assert shards < SLOTS_TOTAL
