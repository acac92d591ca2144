"""Fill a collection before a run, and wait until it is at rest."""

from __future__ import annotations

import time
from time import perf_counter

from rich.console import Console
from rich.progress import Progress

from router.client import Client
from router.ingest import VectorFile
from shard.config import BufferConfig
from shard.errors import CollectionNotFound, DeadlineExceeded
from shard.types import CollectionDescription, Metric, ShardState

BATCH_ROWS = 20_000
REST_S = 600.0
POLL_S = 0.1


def fill(client: Client, name: str, source: VectorFile, console: Console) -> None:
    """Write all rows, with a progress bar on `console`; rows that are there already add nothing.

    The collection is created if it is not there: with the source's metric, or else COSINE.

    Raises
    ------
    DeadlineExceeded
        If the collection does not come to rest.
    """
    try:
        client.describe(name)
    except CollectionNotFound:
        metric = source.metric or Metric.COSINE
        client.create_collection(name, dim=source.dim, metric=metric, id_type=source.id_type)
    with Progress(console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task(f"writing {source.rows:,} rows", total=source.rows)
        for ids, vectors in source.batches(BATCH_ROWS):
            client.upsert(name, ids, vectors)
            progress.advance(task, len(ids))
        progress.add_task("training and absorbing", total=None)
        wait_until_at_rest(client, name)


def wait_until_at_rest(client: Client, name: str) -> None:
    """Return once no background work of the collection disturbs a run."""
    end = perf_counter() + REST_S
    while not at_rest(client.describe(name)):
        if perf_counter() > end:
            raise DeadlineExceeded(f"{name} is not trained and absorbed after {REST_S:g} s")
        time.sleep(POLL_S)


def at_rest(description: CollectionDescription) -> bool:
    """Whether every shard is trained and absorbed, or has too few rows to ever be."""
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
