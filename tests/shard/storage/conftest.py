"""A row store on a disk that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash_disk import FailingDisk
from tests.shard.storage.row_store_samples import ENTRY
from vectorshard.shard.storage.row_store import RowStore


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def store(disk: FailingDisk, tmp_path: Path) -> Iterator[RowStore]:
    store = RowStore.create(disk, tmp_path, ENTRY)
    yield store
    store.close()
