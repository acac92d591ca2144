"""Limits of the machine are refusals in time, and problems that an operator reads."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.crash_disk import FailingDisk
from tests.shard.engine.contents import (
    ENTRY,
    SEED,
    Contents,
    Writes,
    applied,
    check_contents,
    opened,
)
from vectorshard.shard.config import EngineConfig, MachineConfig
from vectorshard.shard.engine.commit_plan import CommitPlan
from vectorshard.shard.engine.machine import (
    DISK_FULL_RETRY_S,
    LOOK_S,
    Machine,
    limited,
    naming_disk_failures,
    naming_start_failures,
)
from vectorshard.shard.engine.machine import (
    FULL as FULL_TEXT,
)
from vectorshard.shard.errors import (
    DataDirectoryFull,
    DataDirectoryUnusable,
    DiskFailed,
    LimitsTooLow,
    Overloaded,
    VectorShardError,
)
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import IdType, Metric

MB = 1_000_000


class SizedDisk(Disk):
    """A disk that states its free space and its type."""

    def __init__(self, free: int, size: int = 100_000 * MB, file_system: str = "ext4") -> None:
        self.free = free
        self.size = size
        self.looks = 0
        self.read_only = False
        self._file_system = file_system

    def free_bytes(self, path: Path) -> tuple[int, int]:
        self.looks += 1
        return self.free, self.size

    def is_read_only(self, path: Path) -> bool:
        return self.read_only

    def file_system(self, path: Path) -> str:
        return self._file_system


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def machine(disk: Disk, clock: Clock, **config: object) -> Machine:
    """Return the machine of a shard in /somewhere."""
    engine = replace(EngineConfig(), machine=MachineConfig(**config))  # type: ignore[arg-type]
    return Machine(disk, Path("/somewhere"), engine, clock)


def test_a_small_disk_is_described_in_kilobytes() -> None:
    disk = SizedDisk(free=400_000, size=12 * MB)
    with pytest.raises(Overloaded, match=r"has 400 kB free and the server keeps 600 kB"):
        machine(disk, Clock()).require_room()


def test_a_disk_with_less_than_the_reserve_refuses_until_it_has_room_again() -> None:
    disk, clock = SizedDisk(free=99 * MB), Clock()
    small = machine(disk, clock, reserve_bytes=100 * MB)
    with pytest.raises(Overloaded, match=r"has 99 MB free and the server keeps 100 MB") as refused:
        small.require_room()
    assert refused.value.retry_delay_s == DISK_FULL_RETRY_S
    (problem,) = small.problems(3)
    assert (problem.shard, problem.kind) == (3, ProblemKind.DISK_FULL)
    assert "/somewhere" in problem.text

    disk.free = 100 * MB
    with pytest.raises(Overloaded):  # it has just looked
        small.require_room()
    clock.now += LOOK_S
    small.require_room()
    assert small.problems(3) == []
    assert disk.looks == 2


def test_a_small_disk_keeps_a_share_of_its_size() -> None:
    config = MachineConfig(reserve_bytes=256 * MB, reserve_share=0.05)
    assert config.reserve_of(1_000 * MB) == 50 * MB
    assert config.reserve_of(100_000 * MB) == 256 * MB


def test_a_full_disk_without_a_reserve_is_a_problem() -> None:
    disk = SizedDisk(free=4_096)
    full = machine(disk, Clock(), reserve_bytes=0)
    full.require_room()  # the writes themselves find out
    (problem,) = full.problems(3)
    assert (problem.kind, problem.text) == (ProblemKind.DISK_FULL, f"/somewhere: {FULL_TEXT}")


def test_work_in_the_background_leaves_half_of_the_reserve() -> None:
    disk = SizedDisk(free=99 * MB)
    small = machine(disk, Clock(), reserve_bytes=100 * MB)
    assert small.shortage(49 * MB) == ""
    assert small.shortage(50 * MB) == (
        "the disk has 99 MB free, and the work needs 50 MB, beside 50 MB that the server keeps: "
        "drop a collection, or enlarge the disk"
    )


def test_a_read_only_disk_refuses_writes_until_it_is_writable_and_is_a_problem() -> None:
    disk, clock = SizedDisk(free=MB * MB), Clock()
    some = machine(disk, clock)
    some.require_writable()
    disk.read_only = True
    clock.now += LOOK_S
    for require in (some.require_writable, some.require_room, lambda: some.require_place(0)):
        with pytest.raises(DiskFailed, match=r"the file system is read-only: .* mount it writable"):
            require()
    (problem,) = some.problems(3)
    assert (problem.shard, problem.kind) == (3, ProblemKind.WRITES_STOPPED)
    assert problem.text.startswith("/somewhere: the file system is read-only")
    disk.read_only = False
    clock.now += LOOK_S
    some.require_writable()
    assert some.problems(3) == []


def test_creates_are_refused_with_the_limit_and_its_cure() -> None:
    too_low = "the limit of memory maps, 1024, suffices for 83 collections: raise it"
    limited = machine(SizedDisk(free=MB * MB), Clock(), collections_max=83, limit_too_low=too_low)
    limited.require_place(82)
    with pytest.raises(Overloaded, match="83 collections, and the limit of memory maps, 1024"):
        limited.require_place(83)
    (problem,) = limited.problems(0)
    assert (problem.kind, problem.text) == (ProblemKind.LIMIT, too_low)


@pytest.mark.parametrize(
    ("file_system", "is_unsafe"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)],
)
def test_a_network_file_system_is_a_problem(file_system: str, is_unsafe: bool) -> None:
    with capture_logs() as logged:
        problems = machine(SizedDisk(MB * MB, file_system=file_system), Clock()).problems(0)
    assert [problem.kind for problem in problems] == [ProblemKind.DISK_UNSAFE] * is_unsafe
    assert [entry["event"] for entry in logged] == ["network file system"] * is_unsafe


def _sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("of a test")
    error.sqlite_errorcode = code
    return error


def _failing(error: Exception) -> None:
    raise error


EXHAUSTED = [
    *(OSError(code, os.strerror(code)) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)),
    _sqlite_error(sqlite3.SQLITE_CANTOPEN),
    _sqlite_error(sqlite3.SQLITE_IOERR_NOMEM),
    MemoryError(),
]
FULL = [
    OSError(errno.ENOSPC, "no space"),
    _sqlite_error(sqlite3.SQLITE_FULL),
    _sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE),
]
READ_ONLY = [OSError(errno.EROFS, "read-only"), _sqlite_error(sqlite3.SQLITE_READONLY)]
LOCKED = [_sqlite_error(sqlite3.SQLITE_BUSY), _sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT)]
BROKEN = [OSError(errno.EIO, "input/output"), _sqlite_error(sqlite3.SQLITE_IOERR)]


@pytest.mark.parametrize("error", [*EXHAUSTED, *FULL, *LOCKED])
def test_a_limit_that_is_met_is_overloaded_and_may_be_tried_again(error: Exception) -> None:
    with pytest.raises(Overloaded, match="and retry"):
        limited(_failing, error)


@pytest.mark.parametrize("error", READ_ONLY)
def test_a_read_only_disk_is_named_with_its_cure(error: Exception) -> None:
    for call in (limited, naming_disk_failures):
        with pytest.raises(DiskFailed, match=r"read-only: .*mount it writable, and repeat"):
            call(_failing, error)
    with pytest.raises(DataDirectoryUnusable, match="/somewhere: the file system is read-only"):
        naming_start_failures(Path("/somewhere"), _failing, error)


@pytest.mark.parametrize("error", BROKEN)
def test_a_change_that_the_disk_fails_is_named(error: Exception) -> None:
    with pytest.raises(DiskFailed, match=r"the disk failed the change .*: check the disk"):
        naming_disk_failures(_failing, error)


@pytest.mark.parametrize("error", [*BROKEN, ValueError("a fault")])
def test_other_failures_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        limited(_failing, error)
    assert raised.value is error


@pytest.mark.parametrize(
    ("errors", "named"),
    [(EXHAUSTED, LimitsTooLow), (FULL, DataDirectoryFull), (BROKEN, DataDirectoryUnusable)],
)
def test_a_failing_start_has_a_name(errors: list[Exception], named: type[VectorShardError]) -> None:
    for error in errors:
        with pytest.raises(named, match="/somewhere"):
            naming_start_failures(Path("/somewhere"), _failing, error)


@pytest.mark.parametrize("kind", ["write", "sync", "extend", "commit"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_write_without_files_or_memory_is_refused_and_the_next_is_taken(
    tmp_path: Path, kind: str, code: int
) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    with opened(disk, tmp_path / "shard-0", ENTRY) as collection:
        disk.fail(kind, code=code)  # type: ignore[arg-type]
        (outcome,) = collection.writes.apply([write.upsert(range(30))])
        assert isinstance(outcome, Overloaded)
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(20)))
        check_contents(collection, contents)


def test_a_write_while_another_program_has_locked_the_store_is_refused_and_the_next_is_taken(
    tmp_path: Path,
) -> None:
    write = Writes(IdType.STRING, SEED)
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        collection.state.row_store._database.connection.execute("PRAGMA busy_timeout = 0")
        path = collection.state.directory / "store.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            (outcome,) = collection.writes.apply([write.upsert(range(30))])
        assert isinstance(outcome, Overloaded)
        assert "another program has locked store.db" in str(outcome)
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(20)))
        check_contents(collection, contents)


def test_upserts_are_refused_at_the_reserve_and_deletes_are_not(tmp_path: Path) -> None:
    write = Writes(IdType.STRING, SEED)
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        collection.state.require_room = lambda: limited(_failing, FULL[0])
        refused, deleted = collection.writes.apply([write.upsert([40]), write.delete([3])])
        assert isinstance(refused, Overloaded)
        assert not isinstance(deleted, Exception)
        check_contents(collection, contents.after(write.delete([3])))


def test_a_write_that_cannot_read_for_want_of_files_is_refused_and_nothing_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Writes(IdType.STRING, SEED)
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        monkeypatch.setattr(CommitPlan, "add", lambda *_: _failing(EXHAUSTED[0]))
        (outcome,) = collection.writes.apply([write.upsert(range(5))])
        assert isinstance(outcome, Overloaded)
        assert collection.state.problems == []
        monkeypatch.undo()
        check_contents(collection, contents)


def test_no_write_is_tried_on_a_read_only_disk(tmp_path: Path) -> None:
    def refuse() -> None:
        raise DiskFailed("read-only")

    write = Writes(IdType.STRING, SEED)
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        collection.state.require_room = collection.state.require_writable = refuse
        for outcome in collection.writes.apply([write.upsert([40]), write.delete([3])]):
            assert isinstance(outcome, DiskFailed)
        with pytest.raises(DiskFailed):
            collection.writes.update(0.5)
        assert collection.state.problems == []
        collection.state.require_room = collection.state.require_writable = lambda: None
        check_contents(collection, contents)
        applied(collection, contents, write.delete([3]))
