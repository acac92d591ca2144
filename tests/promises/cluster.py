"""A collection on 1, 2 or 8 shards in this process, and what it should hold.

Background work runs only in `settle`, to its end, on the caller's thread: a test says when, and
nothing depends on how fast the machine is. The clock is the test's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.conformance.backends import open_leaf_shards
from tests.promises.truth import Found, Judged, judged
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import EngineConfig, TrainingConfig
from vectorshard.shard.descriptions import CollectionDescription, ExplainRequest, Explanation
from vectorshard.shard.engine import local_shard
from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.filters import Filter
from vectorshard.shard.index.ivf_index import use_cores
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    BoolArray,
    CollectionConfig,
    DeleteRequest,
    Effort,
    FieldType,
    FilterField,
    Float32Array,
    IdType,
    IndexConfig,
    IndexKind,
    Int64Array,
    Metric,
    Role,
    SearchRequest,
    SearchResult,
    TrainRequest,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

NAME: Final = "words"
BATCH: Final = 64
WRITTEN_AT_ONCE: Final = 5_000
MINUTE_S: Final = 60.0
LOOKS: Final = 12
"""In a minute: at what is due only because time has passed."""
ENGINE: Final = EngineConfig(training=TrainingConfig(candidate_price=1.0))
"""A measured price would change from run to run."""

LOTS: Final = 10
LOT_FIELD: Final = FilterField("lot", FieldType.INT64)
"""A declared field: the last digit of the id."""

_METADATA: Final = [metadata_from_mapping({"lot": lot}) for lot in range(LOTS)]


class SteppedThreads(BackgroundThreads):
    """The background work of a shard without its threads and its rests, by the test's clock."""

    def __init__(self, clock: Callable[[], float], when_idle: Callable[[], None]) -> None:
        super().__init__(clock, clock, when_idle)

    def start(self) -> None:
        """Start nothing."""

    def stop(self) -> None:
        """Abandon nothing: no work runs between two settlings."""

    def _rest(self, rest_s: float, is_over: Any) -> None:
        """Go on; nothing else competes for the machine."""

    def run(self) -> None:
        """Do all work that is due."""
        seen = -1
        while seen != self._changes:
            seen = self._changes
            self._run_all(self._absorb)
            self._run_all(self.build_step)


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards opened from now on work in the background only when they are told to."""
    monkeypatch.setattr(local_shard, "BackgroundThreads", SteppedThreads)


@dataclass
class Cluster:
    """A collection, and a model of it: `rows` (ids, dim), NaN where an id is not alive."""

    path: Path
    config: CollectionConfig
    shards_total: int
    routed: bool
    leaves: list[LocalShard]
    shard: Shard
    rows: Float32Array
    now: list[float]
    own_threads: bool

    @classmethod
    async def create(
        cls,
        path: Path,
        ids: int,
        dim: int,
        *,
        metric: Metric = Metric.L2,
        kind: IndexKind = IndexKind.IVF_PQ,
        target: float = 0.95,
        shards: int = 1,
        routed: bool = False,
        filtered: bool = False,
        min_training_size: int = 1_000,
        own_threads: bool = False,
    ) -> Cluster:
        """Create an empty collection for ids below `ids`, on shards with the default options.

        With `own_threads`, the shards do their background work themselves.
        """
        config = CollectionConfig(
            name=NAME,
            dim=dim,
            metric=metric,
            id_type=IdType.INT64,
            index=IndexConfig(kind=kind, min_training_size=min_training_size),
            target_recall=target,
            filter_fields=(LOT_FIELD,) if filtered else (),
        )
        now = [1_700_000_000.0]
        routed = routed or shards > 1
        leaves, shard = await _open(path, shards, routed, now)
        rows = np.full((ids, dim), np.nan, np.float32)
        cluster = cls(path, config, shards, routed, leaves, shard, rows, now, own_threads)
        await shard.create_collection(config)
        return cluster

    async def reopen(self) -> None:
        """Close the shards and open them on what they left behind."""
        await self.shard.close()
        self.leaves, self.shard = await _open(self.path, self.shards_total, self.routed, self.now)

    # ---- what changes it ------------------------------------------------------------------------

    async def write(self, ids: Int64Array, vectors: Float32Array) -> None:
        """Write rows, and let the background work keep up as it does under a steady load."""
        for first in range(0, len(ids), WRITTEN_AT_ONCE):
            part = slice(first, first + WRITTEN_AT_ONCE)
            metadata = None
            if self.config.filter_fields:
                metadata = [_METADATA[id_ % LOTS] for id_ in ids[part].tolist()]
            request = UpsertRequest(
                collection=NAME, ids=ids[part], vectors=vectors[part], metadata=metadata
            )
            result = await self.shard.upsert(request)
            assert (result.accepted, result.errors) == (len(ids[part]), ())
            self.rows[ids[part]] = vectors[part]
            self.work()

    async def delete(self, ids: Int64Array) -> None:
        """Delete rows, all of which are alive."""
        deleted = (await self.shard.delete(DeleteRequest(collection=NAME, ids=ids))).deleted
        assert deleted == len(ids)
        self.rows[ids] = np.nan

    async def train(self) -> None:
        """Train, as a caller of Train does."""
        await self.shard.train(TrainRequest(collection=NAME))
        self.work()

    def settle(self) -> None:
        """Let a minute pass without a call; the shards look at what is due every few seconds."""
        for _ in range(LOOKS):
            self.now[0] += MINUTE_S / LOOKS
            self.work()

    def work(self) -> None:
        """Do the background work that is due on all shards."""
        if self.own_threads:
            return
        use_cores(1)
        for leaf in self.leaves:
            threads = leaf._background
            assert isinstance(threads, SteppedThreads), "the test needs the fixture `stepped`"
            threads.run()

    # ---- what asks it ---------------------------------------------------------------------------

    @property
    def alive(self) -> BoolArray:
        """Whether each id is alive."""
        return ~np.isnan(self.rows[:, 0])

    @property
    def living(self) -> int:
        """Rows alive."""
        return int(self.alive.sum())

    async def search(
        self,
        queries: Float32Array,
        k: int = 10,
        *,
        target: float = 0.0,
        exact: bool = False,
        filter_: Filter | None = None,
        batch: int = BATCH,
    ) -> list[SearchResult]:
        """Search in batches, for the target recall: by default that of the collection."""
        effort = Effort(target_recall=target or self.config.target_recall)
        if exact:
            effort = Effort(exact=True)
        return [
            await self.shard.search(
                SearchRequest(
                    collection=NAME,
                    queries=queries[first : first + batch],
                    k=k,
                    effort=effort,
                    filter=filter_,
                )
            )
            for first in range(0, len(queries), batch)
        ]

    async def judge(
        self,
        queries: Float32Array,
        k: int = 10,
        *,
        target: float = 0.0,
        exact: bool = False,
        filter_: Filter | None = None,
        passing: BoolArray | None = None,
    ) -> Judged:
        """Search, and compare with the truth over the living rows, those `passing` of a filter."""
        results = await self.search(queries, k, target=target, exact=exact, filter_=filter_)
        rows = self.rows
        if passing is not None:
            rows = np.where(passing[:, None], rows, np.float32(np.nan))
        for result in results:
            receipt = result.receipt
            assert receipt.coverage == 1.0
            assert receipt.shards_answered == self.shards_total
            assert sum(shard.rows_visible for shard in receipt.shards) == self.living
            if passing is not None:
                expected = np.count_nonzero(passing & self.alive)
                assert sum(shard.rows_passing for shard in receipt.shards) == expected
        return judged(self.config.metric, queries, rows, Found.of(k, results))

    async def describe(self) -> CollectionDescription:
        """Describe the collection; its ledger must add up."""
        description = await self.shard.describe(NAME)
        assert description.ledger.adds_up
        assert description.ledger.live == self.living
        return description

    async def explain(self, query: Float32Array, id_: int) -> Explanation:
        """Explain a query (1, dim) and an id."""
        request = ExplainRequest(collection=NAME, query=query, id=np.array([id_], np.int64))
        return await self.shard.explain(request)


async def _open(
    path: Path, shards: int, routed: bool, now: list[float]
) -> tuple[list[LocalShard], Shard]:
    leaves = open_leaf_shards(path, shards, ENGINE, lambda: now[0])
    if not routed:
        return leaves, leaves[0]
    return leaves, await Router.connect(leaves, Role.EMBEDDED)
