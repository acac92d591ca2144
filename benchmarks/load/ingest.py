"""Fill a collection before a run, and wait until it is at rest."""

from __future__ import annotations

import time
from time import perf_counter

from rich.console import Console
from rich.progress import Progress

from benchmarks.load.stored_rows import why_other_kind, why_other_rows
from vectorshard.cli.vector_files import VectorFile
from vectorshard.client.client import Client
from vectorshard.shard.config import BufferConfig
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    VectorShardError,
)
from vectorshard.shard.types import Metric, ShardState

BATCH_ROWS = 20_000
REST_S = 600.0
POLL_S = 0.1


def fill(client: Client, name: str, source: VectorFile, console: Console) -> None:
    """Fill the collection with the rows of the source, with a progress bar on `console`.

    It is created if it does not exist, with the source's metric or else COSINE. A collection that
    holds the rows is left as it is.

    Raises
    ------
    CollectionExists
        If it holds other rows. Nothing was written.
    VectorShardError
        If a row was refused.
    DeadlineExceeded
        If the collection does not come to rest.
    """
    write = not _holds(client, name, source)
    with Progress(console=console, transient=not console.is_terminal) as progress:
        if write:
            task = progress.add_task(f"writing {source.rows:,} rows", total=source.rows)
            for ids, vectors in source.batches(BATCH_ROWS):
                for refused in client.upsert(name, ids, vectors).errors[:1]:
                    raise VectorShardError(f"row {ids.tolist()[refused.row]!r}: {refused.message}")
                progress.advance(task, len(ids))
        progress.add_task("training and absorbing", total=None)
        wait_until_at_rest(client, name)


def _holds(client: Client, name: str, source: VectorFile) -> bool:
    """Whether the collection holds the rows of the source; otherwise it exists and is empty.

    Raises CollectionExists if it holds other rows, which would be overwritten.
    """
    try:
        description = client.describe(name)
    except CollectionNotFound:
        metric = source.metric or Metric.COSINE
        client.create_collection(name, dim=source.dim, metric=metric, id_type=source.id_type)
        return False
    live = description.ledger.live
    reason = (
        why_other_rows(client, description, source)
        if live
        else why_other_kind(description.config, source)
    )
    if reason:
        raise CollectionExists(f"{name}: {reason}")
    return live > 0


def wait_until_at_rest(client: Client, name: str) -> None:
    """Wait until no background work of the collection disturbs a run."""
    end = perf_counter() + REST_S
    while not at_rest(client.describe(name)):
        if perf_counter() > end:
            raise DeadlineExceeded(f"{name} is not trained and absorbed after {REST_S:g} s")
        time.sleep(POLL_S)


def at_rest(description: CollectionDescription) -> bool:
    """Whether every shard is trained and absorbed, or has too few rows for training."""
    few = description.config.index.min_training_size
    return not any(
        shard.training
        or (
            shard.ledger.live >= few
            if shard.state is not ShardState.TRAINED
            else shard.ledger.buffered >= BufferConfig().absorb_rows
        )
        for shard in description.shards
    )
