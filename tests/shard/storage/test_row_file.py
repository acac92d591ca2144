"""The row file keeps what was appended, shows it without copying, and never shrinks under a map."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.crash_disk import FailingDisk, Kind
from vectorshard.shard.errors import RowFileCorrupt
from vectorshard.shard.storage import row_file
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.open_stores import OpenStores
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.types import Float32Array

DIM = 5


def vectors_of(first_row: int, rows: int, dim: int = DIM) -> Float32Array:
    """Return vectors float32 (rows, dim) that say which row they are."""
    numbers = np.arange(first_row * dim, (first_row + rows) * dim, dtype=np.float32)
    return numbers.reshape(rows, dim) + 0.5


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    rows.append(0, vectors_of(0, 3))
    rows.append(3, vectors_of(3, 4))
    rows.close()
    again = RowFile.open(Disk(), tmp_path / "rows", DIM)
    again.require(7)
    np.testing.assert_array_equal(again.view(7), vectors_of(0, 7))


def test_components_lie_row_by_row_in_little_endian_float32(tmp_path: Path) -> None:
    RowFile.open(Disk(), tmp_path / "rows", 2).append(1, np.array([[1.0, -2.0]], np.float32))
    assert (tmp_path / "rows").read_bytes()[:16] == bytes(8) + b"\0\0\x80\x3f\0\0\0\xc0"


def test_a_new_file_shows_no_rows(tmp_path: Path) -> None:
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    assert rows.view(0).shape == (0, DIM)
    rows.append(0, vectors_of(0, 0))
    assert rows.view(0).shape == (0, DIM)
    rows.require(0)


def test_an_append_overwrites_rows_that_were_never_committed(tmp_path: Path) -> None:
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    rows.append(0, vectors_of(0, 4))
    rows.append(2, vectors_of(100, 3))
    np.testing.assert_array_equal(rows.view(5), np.vstack([vectors_of(0, 2), vectors_of(100, 3)]))


def test_a_view_shows_the_same_rows_while_the_file_grows_and_after_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "FIRST_BYTES", 64)
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    rows.append(0, vectors_of(0, 1))
    old = rows.view(1)
    for row in range(1, 500):
        rows.append(row, vectors_of(row, 1))
    rows.close()
    np.testing.assert_array_equal(old, vectors_of(0, 1))


def test_a_view_cannot_be_written(tmp_path: Path) -> None:
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    rows.append(0, vectors_of(0, 1))
    with pytest.raises(ValueError, match="read-only"):
        rows.view(1)[0, 0] = 1.0


def test_vectors_of_any_memory_order_are_appended_row_by_row(tmp_path: Path) -> None:
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    rows.append(0, np.asfortranarray(vectors_of(0, 6)))
    rows.append(6, vectors_of(6, 12)[::2])
    np.testing.assert_array_equal(
        rows.view(12), np.vstack([vectors_of(0, 6), vectors_of(6, 12)[::2]])
    )


def test_other_threads_view_sound_rows_while_one_appends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "FIRST_BYTES", 64)
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    committed = [0]
    wrong: list[int] = []

    def look() -> None:
        while committed[0] < 300:
            count = committed[0]
            if not np.array_equal(rows.view(count), vectors_of(0, count)):
                wrong.append(count)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for row in range(300):
        rows.append(row, vectors_of(row, 1))
        committed[0] = row + 1
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("bytes_left", [0, 1, 3 * DIM * 4 - 1])
def test_a_file_shorter_than_its_committed_rows_is_corrupt(tmp_path: Path, bytes_left: int) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(bytes_left))
    rows = RowFile.open(Disk(), path, DIM)
    with pytest.raises(RowFileCorrupt, match="3 committed rows of dim 5 need 60"):
        rows.require(3)


def test_the_file_doubles_until_the_largest_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "FIRST_BYTES", 1_000)
    monkeypatch.setattr(row_file, "LARGEST_STEP_BYTES", 3_000)
    rows = RowFile.open(Disk(), tmp_path / "rows", 250)
    sizes = []
    for row in range(12):
        rows.append(row, vectors_of(row, 1, 250))
        sizes.append((tmp_path / "rows").stat().st_size)
    assert sizes == [1_000, 2_000, *[4_000] * 2, *[7_000] * 3, *[10_000] * 3, *[13_000] * 2]


def test_the_file_occupies_what_was_written_and_not_its_holes(tmp_path: Path) -> None:
    rows = RowFile.open(Disk(), tmp_path / "rows", DIM)
    rows.append(0, vectors_of(0, 1))
    assert 0 < rows.disk_bytes <= 64 * 1024


def test_an_append_is_synced_once_and_the_creation_is_synced_in_the_directory(
    tmp_path: Path,
) -> None:
    disk = FailingDisk()
    rows = RowFile.open(disk, tmp_path / "rows", DIM)
    assert disk.counts["sync_directory"] == 1
    rows.append(0, vectors_of(0, 1000))
    assert disk.counts["sync"] == 1


KINDS: list[Kind] = ["extend", "write", "sync"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_append_is_raised_harms_no_committed_row_and_may_be_repeated(
    tmp_path: Path, kind: Kind, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "FIRST_BYTES", 64)
    disk = FailingDisk()
    rows = RowFile.open(disk, tmp_path / "rows", DIM)
    rows.append(0, vectors_of(0, 3))
    disk.fail(kind, code=code)
    with pytest.raises(OSError, match=os.strerror(code)):
        rows.append(3, vectors_of(3, 20))
    np.testing.assert_array_equal(rows.view(3), vectors_of(0, 3))
    rows.append(3, vectors_of(3, 20))
    np.testing.assert_array_equal(rows.view(23), vectors_of(0, 23))


def test_no_file_is_ever_shortened(tmp_path: Path) -> None:
    disk = Disk()
    file = disk.open(tmp_path / "file")
    disk.extend(file, 100)
    with pytest.raises(ValueError, match="size 99 is below the 100 bytes"):
        disk.extend(file, 99)
    assert file.size == 100


@settings(max_examples=50, deadline=None)
@given(appends=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), max_size=12))
def test_the_file_is_the_matrix_of_its_appends(
    tmp_path_factory: pytest.TempPathFactory, appends: list[tuple[int, int]]
) -> None:
    rows = RowFile.open(Disk(), tmp_path_factory.mktemp("rows") / "rows", DIM)
    model = np.zeros((0, DIM), np.float32)
    for step, (uncommitted, appended) in enumerate(appends):
        first_row = max(0, len(model) - uncommitted)
        vectors = vectors_of(1000 * step, appended)
        rows.append(first_row, vectors)
        model = np.vstack([model[:first_row], vectors])
        np.testing.assert_array_equal(rows.view(len(model)), model)
    rows.close()


def test_an_append_to_a_file_that_was_replaced_fails_and_changes_nothing_in_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows"
    rows = RowFile.open(Disk(), path, DIM)
    rows.append(0, vectors_of(0, 3))
    other = tmp_path / "other"
    other.write_bytes(b"of another day")
    other.rename(path)
    with pytest.raises(OSError, match="the row file was replaced") as failed:
        rows.append(3, vectors_of(3, 1))
    assert failed.value.errno == errno.ESTALE
    assert path.read_bytes() == b"of another day"
    np.testing.assert_array_equal(rows.view(3), vectors_of(0, 3))


def test_an_append_to_a_file_that_was_removed_fails_and_creates_none(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    rows = RowFile.open(Disk(), path, DIM)
    rows.append(0, vectors_of(0, 3))
    path.unlink()
    with pytest.raises(OSError, match="the row file was removed") as failed:
        rows.append(3, vectors_of(3, 1))
    assert failed.value.errno == errno.ESTALE
    assert not path.exists()
    np.testing.assert_array_equal(rows.view(3), vectors_of(0, 3))


def test_a_row_file_needs_a_descriptor_to_append_only(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    disk = Disk()
    disk.open_row_files = OpenStores(1)
    rows, others = (RowFile.open(disk, tmp_path / name, DIM) for name in ("rows", "others"))
    assert set(Path("/proc/self/fd").iterdir()) == before
    for first in range(3):
        rows.append(first, vectors_of(first, 1))
        others.append(first, vectors_of(first, 1))
        assert len(set(Path("/proc/self/fd").iterdir()) - before) == 1
    np.testing.assert_array_equal(rows.view(3), vectors_of(0, 3))
    for file in (rows, others):
        file.close()
        with pytest.raises(ValueError, match="is closed"):
            file.append(3, vectors_of(3, 1))
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not len(disk.open_row_files)
