"""The data directories of shards: which shard each belongs to, and how a server opens one.

    DIR/shard.json                one shard of a fleet, opened by `vectorshard shard`
    DIR/shard-N/shard.json        the shards of one process, opened by `vectorshard serve`

Both have the same format: either command may continue what the other wrote. Each refuses the
other's DIR, which would look empty to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import DataDirectoryForeign
from vectorshard.shard.runtime.allocator import give_back
from vectorshard.shard.storage.data_directory import IDENTITY_FILE, ShardIdentity, new_cluster
from vectorshard.shard.storage.disk import Disk

PLACEMENT_EPOCH: Final = 1

CLUSTER_DEFAULT: Final = "default"
"""The cluster of a shard of a fleet whose directory is new, unless `--cluster` names another."""


def embedded_directory(data: Path, shard: int) -> Path:
    """Return where a shard of `vectorshard serve` keeps its rows."""
    return data / f"shard-{shard}"


def require_no_shard(data: Path) -> None:
    """Raise DataDirectoryForeign if `data` is the directory of one shard."""
    if (data / IDENTITY_FILE).exists():
        raise DataDirectoryForeign(
            f"{data} is the directory of one shard: give the directory above it, or run "
            "`vectorshard shard` on it"
        )


def require_no_embedded_shards(data: Path) -> None:
    """Raise DataDirectoryForeign if `data` contains the directories of several shards."""
    for other in sorted(data.glob(f"shard-*/{IDENTITY_FILE}")):
        raise DataDirectoryForeign(
            f"{data} contains the directories of several shards: give one of them, such as "
            f"{other.parent}"
        )


async def open_shard(
    disk: Disk,
    directory: Path,
    engine: EngineConfig,
    *,
    shard: int,
    shards_total: int,
    cluster: str = "",
    new_cluster: Callable[[], str] = new_cluster,
) -> LocalShard:
    """Open one of `shards_total` shards; an empty cluster joins the one in its directory.

    `new_cluster` names the cluster of a new directory if `cluster` is empty.

    Raises
    ------
    DataDirectoryError, CorruptData
        If the data directory cannot be opened as this shard's.
    """
    identity = ShardIdentity(
        cluster=cluster,
        shard=shard,
        shards_total=shards_total,
        slots=slots_of_shard(shard, shards_total),
        placement_epoch=PLACEMENT_EPOCH,
    )
    return await asyncio.to_thread(
        LocalShard.open,
        disk,
        directory,
        identity,
        engine,
        new_cluster=new_cluster,
        when_idle=give_back,
    )
