"""Two shards of 300 rows in a process: as they were closed, while they ran, and as of yesterday."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from tests.shard.filter_samples import FIELDS
from tests.shard.samples import config_of, ids_of, some_vectors
from vectorshard.cli.embedded import open_embedded
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import (
    BufferConfig,
    CompactionConfig,
    EngineConfig,
    MachineConfig,
    ScrubConfig,
    TrainingConfig,
)
from vectorshard.shard.types import (
    CollectionConfig,
    DeleteRequest,
    IdType,
    Include,
    IndexKind,
    ListRequest,
    Metric,
    TrainRequest,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

SHARDS: Final = 2
DIM: Final = 8
ROWS: Final = 300

ENGINE: Final = EngineConfig(
    buffer=BufferConfig(absorb_rows=20, absorb_piece_rows=20),
    training=TrainingConfig(calibration_queries=8, checkpoint_min_rows=1, pq_rows_min=1),
    compaction=CompactionConfig(dead_rows_min=15, dead_codes_min=1_000_000, dead_share=0.1),
    scrub=ScrubConfig(interval_s=0),
    machine=MachineConfig(reserve_bytes=0),
    few_rows_work=0,
)

CONFIGS: Final = (
    config_of("plain", dim=DIM),
    CollectionConfig(
        name="labelled",
        dim=DIM,
        metric=Metric.COSINE,
        id_type=IdType.STRING,
        index=config_of(kind=IndexKind.IVF_FLAT).index,
        filter_fields=FIELDS,
    ),
)

Content: TypeAlias = Mapping[tuple[str, int | str], tuple[bytes, bytes]]
"""(collection, id) -> the bytes of its vector and of its metadata."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Directories of two shards, and what they hold.

    `closed` was closed, `running` is a copy of the files of a quiet server, with logs; both hold
    `content`. `yesterday` is an earlier state of `closed`.
    """

    closed: Path
    running: Path
    yesterday: Path
    content: Content


def made_below(base: Path) -> Stores:
    """Make the directories."""
    return asyncio.run(_made_below(base))


async def _made_below(base: Path) -> Stores:
    rng = np.random.default_rng(5)
    closed, running, yesterday = (base / name for name in ("closed", "running", "yesterday"))
    router = await open_embedded(closed, SHARDS, ENGINE)
    for config in CONFIGS:
        await router.create_collection(config)
        for first in range(0, ROWS - 100, 50):
            await _upsert(router, config, range(first, first + 50), seed=first)
        await router.train(TrainRequest(collection=config.name, wait=True))
        dead = rng.choice(ROWS - 100, size=60, replace=False).tolist()
        ids = ids_of(config.id_type, dead)
        await router.delete(DeleteRequest(collection=config.name, ids=ids))
        await _settled(router, config.name)
    await router.close()
    shutil.copytree(closed, yesterday, symlinks=True)
    router = await open_embedded(closed, SHARDS, ENGINE)
    for config in CONFIGS:
        await _upsert(router, config, range(ROWS - 100, ROWS - 10), seed=7)
        await _upsert(router, config, range(150, 160), seed=8)
        await _settled(router, config.name)
        await _upsert(router, config, range(ROWS - 10, ROWS), seed=9)
        ids = ids_of(config.id_type, [ROWS - 1])
        await router.delete(DeleteRequest(collection=config.name, ids=ids))
    content = await content_of(router)
    await asyncio.sleep(0.3)  # until the log marks are synced, and witnesses know the last write
    shutil.copytree(closed, running, symlinks=True)
    await router.close()
    return Stores(closed, running, yesterday, content)


async def _settled(router: Router, name: str) -> None:
    """Wait until no background work is due."""
    for _ in range(40):
        await asyncio.sleep(0.02)
        if not any(shard.training for shard in (await router.describe(name)).shards):
            return


async def _upsert(router: Router, config: CollectionConfig, rows: range, seed: int) -> None:
    metadata = None
    if config.filter_fields:
        metadata = [
            metadata_from_mapping({"lang": f"l{row % 7}", "year": row, "text": "é" * 20})
            for row in rows
        ]
    await router.upsert(
        UpsertRequest(
            collection=config.name,
            ids=ids_of(config.id_type, list(rows)),
            vectors=some_vectors(len(rows), DIM, seed),
            metadata=metadata,
        )
    )


async def content_of(router: Router, *, skip_damaged: bool = False) -> Content:
    """Return all rows, with their bytes."""
    content: dict[tuple[str, int | str], tuple[bytes, bytes]] = {}
    for config in CONFIGS:
        request = ListRequest(
            collection=config.name,
            include=Include(vectors=True, metadata=True),
            skip_damaged=skip_damaged,
            page_size=10_000,
        )
        page = await router.list_rows(request)
        assert page.vectors is not None
        metadata = page.metadata or [b""] * len(page.ids)
        for id_, vector, struct in zip(page.ids.tolist(), page.vectors, metadata, strict=True):
            content[config.name, id_] = vector.tobytes(), struct
    return content
