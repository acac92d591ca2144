"""The recorder sees what programs do to files, SQLite among them; what it does not is noticed."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.crash_recorder.recorder import check_recording, compiler, operations, run_recorded
from tests.crash_states import (
    CrashState,
    Created,
    Linked,
    Mapped,
    Marked,
    Operation,
    Removed,
    Renamed,
    Resized,
    Synced,
    Written,
)

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="needs a C compiler: .ci/prerequisites --compiler"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that is recorded."""
    root = tmp_path / "root"
    root.mkdir()
    return root


def recorded(program: str | list[str | Path], root: Path) -> list[Operation]:
    """Run a program, or its text, under the recorder."""
    log = root.with_name("log")
    run_recorded(["-c", program, root] if isinstance(program, str) else program, root, log)
    return operations(log, root)


def test_the_end_of_a_recording_is_the_directory_after_every_kind_of_call(
    root: Path, tmp_path: Path
) -> None:
    found = recorded(["-m", "tests.crash_recorder.calls", root], root)
    kinds = {Created, Linked, Renamed, Removed, Written, Resized, Mapped, Synced}
    assert {type(operation) for operation in found} == kinds
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    check_recording(found, root, scratch)
    assert (scratch / "first").samefile(scratch / "second")
    assert (scratch / "by-another").read_bytes() == b"by number"


UNSEEN = """
import ctypes, sys
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
file = library.fopen((sys.argv[1] + "/unseen").encode(), b"w")
library.fputs(b"inside of the C library", ctypes.c_void_p(file))
library.fclose(ctypes.c_void_p(file))
"""


def test_what_comes_by_other_ways_is_noticed(root: Path, tmp_path: Path) -> None:
    found = recorded(UNSEEN, root)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(AssertionError, match="unseen"):
        check_recording(found, root, scratch)


MAPPED = """
import mmap, os, sys
file = os.open(sys.argv[1] + "/mapped", os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
mmap.mmap(file, 4096)
"""


def test_a_file_that_is_written_through_memory_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="mapped is written through memory"):
        recorded(MAPPED, root)


def test_a_program_that_fails_fails(root: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        recorded("raise SystemExit(3)", root)


FAILS = """
import os, sys
from tests.crash_recorder.recorder import Recorder
recorder = Recorder()
directory = os.open(sys.argv[1], os.O_RDONLY)
files = [os.open(sys.argv[1] + name, os.O_RDWR | os.O_CREAT) for name in ("/first", "/second")]
os.fsync(directory)
recorder.fail_sync("second")
for contents in (b"before ", b"and after"):
    for file in files:
        os.write(file, contents)
        try:
            os.fsync(file)
        except OSError as error:
            recorder.mark(error.strerror)
"""


def test_what_a_failed_sync_left_uncertain_stays_so_and_what_follows_is_certain(
    root: Path, tmp_path: Path
) -> None:
    found = recorded(FAILS, root)
    assert [each.event for each in found if isinstance(each, Marked)] == ["Input/output error"]
    outcomes = set()
    for seed in range(20):
        directory = tmp_path / str(seed)
        directory.mkdir()
        CrashState(found, len(found), seed).materialise(directory)
        assert (directory / "first").read_bytes() == b"before and after"
        outcomes.add((directory / "second").read_bytes())
    assert outcomes == {b"before and after", bytes(7) + b"and after"}


# ---- SQLite -------------------------------------------------------------------------------------

COMMITS = """
import sqlite3, sys
from tests.crash_recorder.recorder import Recorder
recorder = Recorder()
connection = sqlite3.connect(sys.argv[1] + "/db", isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA synchronous = {synchronous}")
connection.execute("CREATE TABLE numbers (number)")
connection.execute("PRAGMA wal_checkpoint")
recorder.mark("created")
connection.execute("INSERT INTO numbers VALUES (1)")
recorder.mark("inserted")
connection.execute("PRAGMA wal_checkpoint")
"""


def marked(found: list[Operation], event: str) -> int:
    """Return the moment of a mark."""
    return found.index(Marked(event))


def names(found: list[Operation]) -> dict[int, str]:
    """Return the names of files and directories."""
    return {each.node: each.name for each in found if isinstance(each, Created)} | {0: "root"}


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_a_commit_of_sqlite_is_what_it_writes_and_syncs_of_its_log(
    root: Path, synchronous: str
) -> None:
    found = recorded(COMMITS.format(synchronous=synchronous), root)
    named = names(found)
    insert = found[marked(found, "created") + 1 : marked(found, "inserted")]
    assert {named[each.node] for each in insert if isinstance(each, Written)} == {"db-wal"}
    synced = [named[each.node] for each in insert if isinstance(each, Synced)]
    header = [named[each.node] for each in insert[:2] if isinstance(each, Written | Synced)]
    assert header == ["db-wal", "db-wal"]  # the log begins again: its header comes first
    assert synced == ["db-wal"] * (2 if synchronous == "FULL" else 1)
    checkpoint = found[marked(found, "inserted") + 1 :]
    assert {named[each.node] for each in checkpoint if isinstance(each, Written)} == {"db"}


def test_a_commit_of_sqlite_without_a_sync_of_its_log_is_lost_by_some_power_cut(
    root: Path, tmp_path: Path
) -> None:
    def outcomes(synchronous: str) -> set[int]:
        directory = root / synchronous
        directory.mkdir()
        found = recorded(COMMITS.format(synchronous=synchronous), directory)
        counts = set()
        for seed in range(12):
            state = tmp_path / f"{synchronous}-{seed}"
            state.mkdir()
            CrashState(found, marked(found, "inserted"), seed).materialise(state)
            connection = sqlite3.connect(state / "db")
            ((count,),) = connection.execute("SELECT count(*) FROM numbers").fetchall()
            connection.close()
            counts.add(count)
        return counts

    assert outcomes("FULL") == {1}
    assert outcomes("NORMAL") == {0, 1}
