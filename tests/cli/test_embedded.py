"""The whole service in one process: how many shards it has, and what one shard alone says."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import AsyncMock

import numpy as np
import pytest

from tests.shard.samples import SMALL_ENGINE, config_of
from vectorshard.cli.embedded import open_embedded, shards_below
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.sole_shard import SoleShard
from vectorshard.shard.errors import DataDirectoryForeign, ShardMissing
from vectorshard.shard.types import CountRequest, SearchRequest, UpsertRequest

WORDS = config_of(name="words", dim=2)
VECTORS = np.eye(2, dtype=np.float32)
UPSERT = UpsertRequest(collection="words", ids=np.arange(2), vectors=VECTORS)
SEARCH = SearchRequest(collection="words", queries=VECTORS, k=1)


async def made_for(data: Path, shards: int) -> None:
    await (await open_embedded(data, shards, SMALL_ENGINE)).close()


async def test_a_new_directory_is_for_one_shard_and_an_old_one_for_as_many_as_it_has(
    tmp_path: Path,
) -> None:
    assert shards_below(tmp_path / "new") == 1
    assert shards_below(tmp_path / "new", 3) == 3
    await made_for(tmp_path, 2)
    assert shards_below(tmp_path) == 2
    assert shards_below(tmp_path, 2) == 2
    router = await open_embedded(tmp_path, None, SMALL_ENGINE)
    assert len((await router.topology()).shards) == 2
    await router.close()


async def test_a_lost_directory_does_not_change_the_number(tmp_path: Path) -> None:
    await made_for(tmp_path, 3)
    shutil.rmtree(tmp_path / "shard-0")
    assert shards_below(tmp_path) == 3


async def test_another_number_is_refused_with_the_cure(tmp_path: Path) -> None:
    await made_for(tmp_path, 2)
    with pytest.raises(DataDirectoryForeign, match=r"made for 2 shards.*restore --shards 3"):
        await open_embedded(tmp_path, 3, SMALL_ENGINE)


async def test_directories_of_different_numbers_are_not_opened(tmp_path: Path) -> None:
    await made_for(tmp_path / "a", 1)
    await made_for(tmp_path / "b", 2)
    shutil.move(tmp_path / "a" / "shard-0", tmp_path / "b" / "shard-2")
    with pytest.raises(DataDirectoryForeign, match="different numbers"):
        await open_embedded(tmp_path / "b", None, SMALL_ENGINE)


async def test_one_shard_is_asked_without_the_work_of_a_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = await open_embedded(tmp_path, None, SMALL_ENGINE)
    assert type(shard) is SoleShard
    await shard.create_collection(WORDS)
    for name in ("upsert", "search", "count"):
        monkeypatch.setattr(Router, name, AsyncMock(side_effect=AssertionError(name)))
    assert (await shard.upsert(UPSERT)).accepted == 2
    found = await shard.search(SEARCH)
    assert found.hits.ids.tolist() == [0, 1]
    assert (found.receipt.coverage, found.receipt.shards_total) == (1.0, 1)
    assert await shard.count(CountRequest(collection="words")) == 2
    await shard.close()


async def test_a_lost_collection_of_one_shard_is_missing_until_it_is_dropped(
    tmp_path: Path,
) -> None:
    shard = await open_embedded(tmp_path, None, SMALL_ENGINE)
    await shard.create_collection(WORDS)
    await shard.upsert(UPSERT)
    await shard.close()
    shutil.rmtree(tmp_path / "shard-0" / "collections" / "words")
    shard = await open_embedded(tmp_path, None, SMALL_ENGINE)
    for ask in (shard.search(SEARCH), shard.count(CountRequest(collection="words"))):
        with pytest.raises(ShardMissing, match="its directory is gone"):
            await ask
    await shard.drop_collection("words")
    await shard.create_collection(WORDS)
    assert (await shard.upsert(UPSERT)).accepted == 2
    assert (await shard.search(SEARCH)).hits.ids.tolist() == [0, 1]
    await shard.close()
