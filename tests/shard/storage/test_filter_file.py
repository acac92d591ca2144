"""The filter columns on disk: a start reads them, and makes anew what is missing or harmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.shard.filter_samples import FIELDS, holds, packed, some_mappings
from tests.shard.samples import SMALL_ENGINE, config_of, open_collection, some_vectors
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.commit_plan import UpsertOutcome
from vectorshard.shard.filters import Equals, Exists, Filter, Range
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import CollectionEntry, UpsertRequest

ROWS = 200
MAPPINGS = some_mappings(ROWS)
FILTERS: tuple[Filter, ...] = (
    Equals("lang", "de") & ~Equals("public", True),
    Range("year", gte=1950, lt=1990),
    ~Exists("rating"),
)


def write(collection: Collection, first: int, last: int, mappings: list[dict[str, Any]]) -> None:
    """Write the rows of some ids."""
    request = UpsertRequest(
        collection="words",
        ids=np.arange(first, last),
        vectors=some_vectors(ROWS)[first:last],
        metadata=packed(mappings[first:last]),
    )
    (outcome,) = collection.writes.apply([request])
    assert isinstance(outcome, UpsertOutcome), outcome


def files(path: Path) -> list[str]:
    """Return the files of columns by name."""
    return sorted(file.name for file in path.glob("filters-*"))


@contextmanager
def reopened(path: Path) -> Iterator[Collection]:
    """Open the collection on what was left there."""
    with closing(Collection.open(Disk(), path, 0, SMALL_ENGINE)) as collection:
        yield collection


def check(collection: Collection, mappings: list[dict[str, Any]]) -> None:
    """Assert that exactly the rows that should do pass."""
    for filter_ in FILTERS:
        expected = [row for row, mapping in enumerate(mappings) if holds(filter_, mapping)]
        assert collection.snapshot.passing(filter_).tolist() == expected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The directory of a collection of 150 rows, of which a file holds 100."""
    config = replace(config_of(), filter_fields=FIELDS)
    with closing(open_collection(tmp_path, config)) as collection:
        write(collection, 0, 100, MAPPINGS)
        collection.maintenance.checkpoint()
        write(collection, 100, 150, MAPPINGS)
    return tmp_path


@pytest.fixture
def looked_into(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows' metadata each call of a start looked into."""
    counts: list[int] = []

    def counting(config: Any, metadata: Any) -> Any:
        counts.append(len(metadata))
        return declared_fields(config, metadata)

    monkeypatch.setattr("vectorshard.shard.storage.filter_file.declared_fields", counting)
    return counts


def test_a_start_looks_only_into_the_rows_that_are_newer_than_the_file(
    path: Path, looked_into: list[int]
) -> None:
    assert files(path) == ["filters-100.columns"]
    with reopened(path) as collection:
        assert looked_into == [50]
        check(collection, MAPPINGS[:150])
        write(collection, 150, ROWS, MAPPINGS)
        check(collection, MAPPINGS)
        collection.maintenance.checkpoint()
    assert files(path) == ["filters-200.columns"]
    looked_into.clear()
    with reopened(path) as collection:
        assert looked_into == []
        check(collection, MAPPINGS)


def changed(file: Path) -> None:
    """Change a bit in the middle."""
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 4
    file.write_bytes(contents)


def renumbered(file: Path) -> None:
    """Say that it is of fewer rows."""
    contents = bytearray(file.read_bytes())
    contents[8] -= 1
    file.write_bytes(contents)


def cut(file: Path) -> None:
    """Leave half of it."""
    contents = file.read_bytes()
    file.write_bytes(contents[: len(contents) // 2])


def emptied(file: Path) -> None:
    """Leave nothing in it."""
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [changed, renumbered, cut, emptied, Path.unlink])
def test_a_harmed_file_is_ignored_and_the_columns_made_anew(
    path: Path, harm: Callable[[Path], None], looked_into: list[int]
) -> None:
    harm(path / "filters-100.columns")
    with reopened(path) as collection:
        assert looked_into == [150]
        check(collection, MAPPINGS[:150])
    assert files(path) == []


def test_the_newest_sound_file_is_used_and_the_others_are_removed(
    path: Path, looked_into: list[int]
) -> None:
    older = (path / "filters-100.columns").read_bytes()
    with reopened(path) as collection:
        collection.maintenance.checkpoint()
    (path / "filters-100.columns").write_bytes(older)
    (path / "filters-7.columns.new").write_bytes(b"of an attempt that was cut short")
    looked_into.clear()
    with reopened(path) as collection:
        assert looked_into == []
        check(collection, MAPPINGS[:150])
    assert files(path) == ["filters-150.columns"]


def test_a_file_of_more_rows_than_there_are_is_not_believed(
    path: Path, looked_into: list[int]
) -> None:
    contents = (path / "filters-100.columns").read_bytes()
    (path / "filters-100.columns").unlink()
    other = path.parent / "other"
    other.mkdir()
    config = replace(config_of(), filter_fields=FIELDS)
    with closing(open_collection(other, config)) as collection:
        write(collection, 0, 50, MAPPINGS)
    (other / "filters-100.columns").write_bytes(contents)
    with reopened(other) as collection:
        assert looked_into == [50]
        check(collection, MAPPINGS[:50])
    assert files(other) == []


@pytest.mark.parametrize(
    ("incarnation", "session"), [("incarnation", 8), ("another", 7)], ids=["shard", "collection"]
)
def test_a_sound_file_of_other_rows_is_not_believed(
    path: Path, incarnation: str, session: int, looked_into: list[int]
) -> None:
    own, other = path / "own", path / "other"
    config = replace(config_of(), filter_fields=FIELDS)
    mappings = {own: MAPPINGS[:100], other: MAPPINGS[100:]}
    for place, of, by in ((own, "incarnation", 7), (other, incarnation, session)):
        place.mkdir()
        Collection.create(Disk(), place, CollectionEntry(config=config, incarnation=of))
        with closing(Collection.open(Disk(), place, 0, SMALL_ENGINE, by)) as collection:
            write(collection, 0, 100, mappings[place])
            collection.maintenance.checkpoint()
    looked_into.clear()
    with reopened(own):
        assert looked_into == []
    (other / "filters-100.columns").rename(own / "filters-100.columns")
    with reopened(own) as collection:
        assert looked_into == [100]
        check(collection, mappings[own])
    assert files(own) == []


def test_a_collection_without_declared_fields_has_no_file(tmp_path: Path) -> None:
    with closing(open_collection(tmp_path)) as collection:
        write(collection, 0, 100, MAPPINGS)
        assert not collection.maintenance.checkpoint_due
        collection.maintenance.checkpoint()
    assert files(tmp_path) == []


def test_the_file_is_written_when_the_rows_have_outgrown_it(path: Path) -> None:
    with reopened(path) as collection:
        assert collection.maintenance.checkpoint_due
        collection.maintenance.checkpoint()
        assert not collection.maintenance.checkpoint_due
        write(collection, 150, 160, MAPPINGS)
        assert not collection.maintenance.checkpoint_due
        write(collection, 160, ROWS, MAPPINGS)
        assert collection.maintenance.checkpoint_due


def test_stored_metadata_that_would_be_refused_by_now_counts_as_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [*MAPPINGS[:150], {"lang": 1, "year": 1960}, {"lang": "de", "public": False}]
    with reopened(path) as collection, monkeypatch.context() as unchecked:
        unchecked.setattr("vectorshard.shard.engine.writes.declared_fields", lambda *_: None)
        write(collection, 150, 152, odd)
    with reopened(path) as collection:
        check(collection, [*odd[:150], {}, odd[151]])


def test_columns_that_are_repaired_while_they_are_written_are_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reopened(path) as collection:
        checkpoint, write_new_file = collection.state.checkpoint, Disk.write_new_file

        def repaired_meanwhile(self: Disk, file: Path, contents: Any) -> None:
            write_new_file(self, file, contents)
            checkpoint.ask_columns()

        checkpoint.ask_columns()
        monkeypatch.setattr(Disk, "write_new_file", repaired_meanwhile)
        collection.maintenance.checkpoint()
        monkeypatch.undo()
        assert checkpoint.columns_due(collection.snapshot)
        collection.maintenance.checkpoint()
        assert not checkpoint.columns_due(collection.snapshot)
