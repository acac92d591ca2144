"""A memory map without a descriptor lives as long as its arrays, and not longer."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from vectorshard.shard.storage.memory_map import MemoryMap, require_readable


def mapped(path: Path, size: int) -> MemoryMap:
    """Return a map of a file that is closed again."""
    with path.open("rb") as file:
        return MemoryMap(file.fileno(), size)


def maps_of(path: Path) -> int:
    """Return how many maps of a file this process has."""
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_map_needs_no_descriptor_and_sees_later_writes(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(10_000))
    before = set(Path("/proc/self/fd").iterdir())
    array = mapped(path, 10_000).bytes()
    assert set(Path("/proc/self/fd").iterdir()) <= before  # less: of earlier tests
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\x07", 9_999)
    assert len(array) == 10_000
    assert array[9_999] == 7
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_it_is_unmapped_with_its_last_array(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(10_000))
    array = mapped(path, 10_000).bytes()
    view = array[8:].view(np.float32)[:100].reshape(10, 10)
    del array
    gc.collect()
    assert maps_of(path) == 1
    assert (view == 0).all()
    del view
    gc.collect()
    assert maps_of(path) == 0


def test_a_map_that_fails_is_an_os_error(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(10))
    with pytest.raises(OSError, match="memory") as failed, path.open("rb") as file:
        MemoryMap(file.fileno(), 1 << 62)
    assert failed.value.errno == errno.ENOMEM


def test_pages_that_cannot_be_read_are_an_error_before_they_are_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(10_000))
    array = mapped(path, 10_000).bytes()
    os.truncate(path, 4_096)  # to read beyond it is a SIGBUS, as where the disk fails
    require_readable(array[100:4_096])
    require_readable(array[:0])
    for first, last in ((8_200, 10_000), (0, 10_000)):
        with pytest.raises(OSError, match="Input/output error") as failed:
            require_readable(array[first:last])
        assert failed.value.errno == errno.EIO
