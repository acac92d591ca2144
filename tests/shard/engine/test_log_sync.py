"""Log marks are synced soon after they were written, on one thread, and only then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crash_disk import FailingDisk
from tests.shard.engine.contents import ENTRY, SEED, Writes, opened
from vectorshard.shard.engine.log_sync import SYNC_DELAY_S, LogSync
from vectorshard.shard.membership import ProblemKind

DEADLINE_S = 30.0


class Waits:
    """Stands for the time that a thread waits: each wait ends when the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.durations: list[float] = []

    def __call__(self, duration_s: float) -> None:
        self.durations.append(duration_s)
        self.begun.release()
        assert self.ended.acquire(timeout=DEADLINE_S)


@contextmanager
def started(waits: Waits) -> Iterator[LogSync]:
    log_sync = LogSync(waits)
    log_sync.start()
    try:
        yield log_sync
    finally:
        waits.ended.release(3)
        log_sync.stop()


def test_what_was_written_is_synced_after_the_delay_and_then_the_thread_sleeps(
    tmp_path: Path,
) -> None:
    disk, waits, write = FailingDisk(), Waits(), Writes(ENTRY.config.id_type, SEED)
    with opened(disk, tmp_path / "shard-0", ENTRY) as collection, started(waits) as log_sync:
        mark = collection.state.row_store.log_end
        mark.sync()
        log_sync.attach(mark)
        assert waits.begun.acquire(timeout=DEADLINE_S)  # what the start wrote
        synced = disk.counts.get("sync_mark", 0)
        for _ in range(3):
            collection.writes.apply([write.upsert(range(5))])
        assert disk.counts.get("sync_mark", 0) == synced
        waits.ended.release()
        collection.writes.apply([write.upsert(range(5))])  # perhaps after the sync
        assert waits.begun.acquire(timeout=DEADLINE_S)
        assert 1 <= disk.counts["sync_mark"] - synced <= 2
        assert set(waits.durations) == {SYNC_DELAY_S}
        log_sync.detach(mark)


def test_a_mark_is_synced_within_a_tenth_of_a_second() -> None:
    """docs/reliability.md promises so; a sync takes its time too."""
    assert SYNC_DELAY_S <= 0.08


def test_a_sync_that_fails_harms_no_other_mark(tmp_path: Path) -> None:
    write = Writes(ENTRY.config.id_type, SEED)
    disks = (FailingDisk(), FailingDisk())
    log_sync = LogSync()
    with (
        opened(disks[0], tmp_path / "shard-0", ENTRY) as first,
        opened(disks[1], tmp_path / "shard-1", ENTRY) as second,
    ):
        for collection in (first, second):
            log_sync.attach(collection.state.row_store.log_end)
            collection.writes.apply([write.upsert(range(5))])
        disks[0].fail("sync_mark")
        log_sync.sync_all()
        assert [disk.counts["sync_mark"] for disk in disks] == [1, 1]
        (problem,) = first.problems  # at once, not with the next write
        assert problem.kind is ProblemKind.WRITES_STOPPED
        assert "a sync of the log mark failed" in problem.text
        assert second.problems == []
        (refused,) = first.writes.apply([write.upsert([7])])
        (accepted,) = second.writes.apply([write.upsert([7])])
        assert "a sync of the log mark failed" in str(refused)
        assert not isinstance(accepted, Exception)


def test_a_thread_that_never_started_may_be_stopped() -> None:
    LogSync().stop()
