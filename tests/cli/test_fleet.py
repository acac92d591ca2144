"""Directories on which no shard starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vectorshard.cli.embedded import open_embedded
from vectorshard.cli.fleet import serve_shard
from vectorshard.shard.config import EngineConfig, ServerConfig
from vectorshard.shard.errors import DataDirectoryError, DataDirectoryForeign
from vectorshard.shard.storage.restore_marker import RESTORING_FILE


def made_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def serve_one(data: Path, shards_total: int) -> None:
    """Serve the first shard of a fleet; each test expects a refusal."""
    server = ServerConfig(listen="127.0.0.1:0")
    await serve_shard(
        shard=0, shards_total=shards_total, data=data, cluster=None, cores=1, server=server
    )


async def test_no_server_starts_on_a_restore_that_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / RESTORING_FILE).touch()
    with pytest.raises(DataDirectoryError, match="has not ended"):
        await open_embedded(tmp_path, 2, EngineConfig())
    for data in (tmp_path, tmp_path / "shard-0"):
        with pytest.raises(DataDirectoryError, match="has not ended"):
            await serve_one(data, 2)
    assert made_in(tmp_path) == [RESTORING_FILE], "it made a directory"


async def test_no_server_starts_on_backups(tmp_path: Path) -> None:
    for name in ("backups", "numbers"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataDirectoryForeign, match="holds backups: `vectorshard restore"):
        await open_embedded(tmp_path, None, EngineConfig())
    with pytest.raises(DataDirectoryForeign, match="holds backups"):
        await serve_one(tmp_path, 1)
    assert sorted(made_in(tmp_path)) == ["backups", "numbers"], "it made a directory"
