"""What is acknowledged outlives a power cut.

A small history is recorded on a `RecordingDisk`; each of its crash states is opened with the real
engine and compared with the acknowledged contents. A failure names the state's moment and seed:
`CrashState(tuple(disk.operations), moment, seed)` is that state again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.crash_disk import CrashState, Kind, RecordingDisk
from tests.shard.engine.contents import (
    ENTRY,
    SEED,
    Contents,
    Write,
    Writes,
    absorb,
    applied,
    check_contents,
    entry_of,
    now,
    opened,
    sweep,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.errors import Overloaded, WritesStopped
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    CollectionEntry,
    IdType,
    Metric,
    WriteMode,
)

STATES = 80  # tests/test_crash_states.py draws more, of recorded system calls
STATES_OF_OTHER_ENCODINGS = 25  # the same history in other bytes
TRAINED_AGAIN_EVERY = 10  # states
REBUILT_AGAIN_EVERY = 4


# ---- a recorded history -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    """The collection's creation was acknowledged."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A group of writes was asked for."""

    group: Sequence[Write]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The group of writes that was begun last is done."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The group of writes that was begun last is refused, and nothing of it done."""


class History:
    """Does things to a collection on a recording disk and marks what is acknowledged."""

    def __init__(self, disk: RecordingDisk, entry: CollectionEntry) -> None:
        self.disk = disk
        self.entry = entry
        self.write = Writes(entry.config.id_type, SEED)

    def record(self) -> None:
        """Do it all: every kind of write, training, absorbing, failures and restarts."""
        with self.reopened() as collection:
            self.disk.mark(Created())
            self.before_training(collection)
            self.around_training(collection)
            self.refuse(collection, "write", errno.ENOSPC, Overloaded)
            self.refuse(collection, "extend", errno.ENOSPC, Overloaded, rows=400)
            self.refuse(collection, "commit", errno.ENOSPC, Overloaded)
            self.do(collection, self.write.upsert(range(80, 90)))
        with self.reopened() as collection:
            self.do(collection, self.write.upsert(range(85, 100)))
            build_index(collection, now)
            collection.maintenance.checkpoint()
            self.refuse(collection, "sync", errno.EIO, WritesStopped)
        with self.reopened() as collection:
            self.do(collection, self.write.delete(range(0, 100, 9)))
            self.do(collection, self.write.upsert(range(200, 260)))
            absorb(collection)
            self.refuse(collection, "commit", errno.EIO, WritesStopped)
        with self.reopened() as collection:
            self.do(collection, self.write.upsert([3, 5, 300]))
            self.rebuild(collection)
            collection.maintenance.checkpoint()
            self.do(collection, self.write.delete([3, 4, 200]))
            self.rebuild(collection)
        with self.reopened() as collection:
            sweep(collection)  # what the stop left of the second rebuild
            self.do(collection, self.write.upsert([4, 5, 301]))
            self.do(collection, self.write.delete([301, 6]))

    def record_a_rebuild(self) -> None:
        """Write, rebuild while more is written, sweep, and write on."""
        with self.reopened() as collection:
            self.disk.mark(Created())
            self.do(collection, self.write.upsert(range(50)))
            self.do(collection, self.write.upsert(range(10, 30)), self.write.delete(range(40, 50)))
            self.rebuild(collection)
            sweep(collection)
            self.do(collection, self.write.upsert([11, 41]))

    def rebuild(self, collection: Collection) -> None:
        """Rebuild while rows are written, replaced and deleted, and begin to sweep."""
        write = self.write
        writes: list[Write] = [write.upsert([7, 302]), write.delete([302, 8]), write.upsert([8, 9])]
        meanwhile = iter(writes)

        def go_on() -> None:
            if (write := next(meanwhile, None)) is not None:
                self.do(collection, write)

        collection.compaction.run(go_on)
        assert collection.compaction.sweep_due
        collection.compaction.sweep()

    def before_training(self, collection: Collection) -> None:
        write = self.write
        first = write.upsert(range(20))
        self.do(collection, first)
        self.do(collection, write.upsert(range(20, 40), WriteMode.INSERT))
        self.do(collection, first)  # again: adds nothing
        self.do(collection, write.upsert(range(10, 30)))
        self.do(collection, write.upsert(range(25, 45), WriteMode.INSERT))
        self.do(collection, write.delete([0, 1, 2, 30, 1_000, 1_001]))
        self.do(collection, write.upsert([0, 1]))
        together = (write.upsert(range(50, 60)), write.delete([5, 6]), write.upsert(range(50, 55)))
        self.do(collection, *together)

    def around_training(self, collection: Collection) -> None:
        write = self.write
        build_index(collection, now)
        self.do(collection, write.upsert(range(60, 75)))
        collection.maintenance.checkpoint()
        self.do(collection, write.delete([10, 60, 61]))
        absorb(collection)
        self.do(collection, write.upsert([11, 12, 62, 75]))
        collection.maintenance.checkpoint()

    def reopened(self) -> AbstractContextManager[Collection]:
        """Start, as after a restart."""
        return opened(self.disk, self.disk.root / "shard-0", self.entry)

    def do(self, collection: Collection, *group: Write) -> None:
        """Write a group, and mark its acknowledgement."""
        self.disk.mark(Begun(group))
        outcomes = collection.writes.apply(group)
        self.disk.mark(Acknowledged())
        assert not any(isinstance(outcome, Exception) for outcome in outcomes), outcomes

    def refuse(
        self,
        collection: Collection,
        kind: Kind,
        code: int,
        refusal: type[Exception],
        rows: int = 10,
    ) -> None:
        """Let the disk fail a write, and mark its refusal."""
        group = (self.write.upsert(range(500, 500 + rows)), self.write.delete([7, 8]))
        self.disk.fail(kind, code=code)
        self.disk.mark(Begun(group))
        assert [type(outcome) for outcome in collection.writes.apply(group)] == [refusal] * 2
        self.disk.mark(Refused())


def possible_contents(metric: Metric, marks: Sequence[object]) -> list[Contents]:
    """Return what may be there: all that was acknowledged and, of a group, what is done in turn."""
    acknowledged = Contents(metric)
    group: Sequence[Write] = ()
    for mark in marks:
        match mark:
            case Begun():
                group = mark.group
            case Acknowledged():
                for write in group:
                    acknowledged = acknowledged.after(write)
                group = ()
            case Refused():
                group = ()
    possible = [acknowledged]
    for write in group:
        possible.append(possible[-1].after(write))
    return possible


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files grow, and logs be checkpointed, within a few hundred rows."""
    monkeypatch.setattr("vectorshard.shard.storage.row_file.FIRST_BYTES", 1_024)
    monkeypatch.setattr("vectorshard.shard.storage.row_database.CHECKPOINT_BYTES", 100_000)


KINDS = pytest.mark.parametrize(
    ("entry", "states"),
    [
        (entry_of(IdType.INT64, Metric.L2), STATES),
        (entry_of(IdType.STRING, Metric.COSINE), STATES_OF_OTHER_ENCODINGS),
    ],
    ids=["INT64-L2", "STRING-COSINE"],
)


@KINDS
@pytest.mark.usefixtures("small_steps")
def test_what_is_acknowledged_outlives_a_power_cut_at_any_moment(
    tmp_path: Path, entry: CollectionEntry, states: int
) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    disk = RecordingDisk(recorded)
    History(disk, entry).record()
    check_states(disk.crash_states(Random(SEED), states), tmp_path, entry)


@pytest.mark.usefixtures("small_steps")
def test_a_power_cut_at_every_moment_of_a_rebuild_leaves_the_old_rows_or_the_new(
    tmp_path: Path,
) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    disk = RecordingDisk(recorded)
    History(disk, ENTRY).record_a_rebuild()
    begun = next(
        moment
        for moment, operation in enumerate(disk.operations)
        if getattr(operation, "name", "") == "rows-1.f32"
    )
    states = disk.crash_states(Random(SEED), len(disk.operations) + 1)
    check_states((state for state in states if state.moment >= begun), tmp_path, ENTRY)


def check_states(states: Iterable[CrashState], path: Path, entry: CollectionEntry) -> None:
    """Check what each state leaves, in a directory of its own."""
    for number, state in enumerate(states):
        directory = path / f"state-{number}"
        directory.mkdir()
        try:
            check_state(
                state,
                directory,
                entry,
                train=number % TRAINED_AGAIN_EVERY == 0,
                rebuild=number % REBUILT_AGAIN_EVERY == 0,
            )
        except BaseException as error:
            error.add_note(f"history of seed {SEED}, {state}, kept in {directory}")
            raise
        Disk().remove_tree(directory)


def check_state(
    state: CrashState, directory: Path, entry: CollectionEntry, *, train: bool, rebuild: bool
) -> None:
    """Start on what a power cut left, compare, go on writing, and start once more."""
    state.materialise(directory)
    shard = directory / "shard-0"
    if Created() in state.marks:
        assert (shard / "collections" / "words").is_dir()
    possible = possible_contents(entry.config.metric, state.marks)
    with opened(Disk(), shard, entry) as collection:
        ledger = collection.reads.ledger()
        counts = (ledger.accepted, ledger.replaced, ledger.deleted)
        contents = next(
            (
                contents
                for contents in possible
                if (contents.accepted, contents.replaced, contents.deleted) == counts
            ),
            possible[0],
        )
        check_contents(collection, contents)
        write = Writes(entry.config.id_type, state.seed)
        contents = applied(collection, contents, write.upsert(range(35, 60)))
        contents = applied(collection, contents, write.delete([40, 50]), write.upsert([1]))
        check_contents(collection, contents)
        if train:
            build_index(collection, now)
            collection.maintenance.checkpoint()
            check_contents(collection, contents)
        if rebuild:
            collection.compaction.run(lambda: None)
            sweep(collection)
            check_contents(collection, contents)
    with opened(Disk(), shard, entry) as collection:
        check_contents(collection, contents)
        left = [path.name for path in (shard / "collections" / "words").iterdir()]
        assert sum(name.startswith("rows-") for name in left) == 1
        if train:
            assert collection.reads.ledger().indexed == len(contents.rows)
            assert sum(name.startswith("index-") for name in left) == 1
