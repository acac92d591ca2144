"""A client without a server, for tests of the commands, the demo and the load generator.

Brute force over one collection, with the interface of `client.Client`. A test may break it
on purpose: `forget_everything` answers without hits, `lose_rows` leaves rows out of the ledger.

It is no model of a shard (tests/router/model_shard.py): commands see a client's plain arguments,
and never the Shard protocol, routers or placements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np

from vectorshard.client.config_arguments import (
    FilterFields,
    IndexLike,
    filter_fields_of,
    index_of,
)
from vectorshard.client.results import RowsView, ServerInfo
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import (
    CollectionDescription,
    Explanation,
    ShardDescription,
    Topology,
)
from vectorshard.shard.errors import (
    CollectionNotFound,
    DimensionMismatch,
    InvalidId,
    InvalidVector,
    RowsDamaged,
    ShardUnavailable,
)
from vectorshard.shard.membership import Problem
from vectorshard.shard.types import (
    CollectionConfig,
    FilterPlan,
    Float32Array,
    IdArray,
    IdType,
    IndexConfig,
    Ledger,
    Metric,
    Receipt,
    Role,
    RowError,
    ShardReceipt,
    ShardState,
    Token,
    UInt32Array,
    UpsertResult,
    VectorArray,
)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result."""

    id: int | str
    score: float
    metadata: dict[str, object] | None = None


class Hits(list[list[Hit]]):
    """The hits of each query."""

    receipt: Receipt

    @property
    def counts(self) -> UInt32Array:
        """The number of hits of each query."""
        return np.array([len(hits) for hits in self], dtype=np.uint32)

    @property
    def ids(self) -> IdArray:
        """The ids of all hits, flat."""
        return np.array([hit.id for hits in self for hit in hits], dtype=object)

    @property
    def scores(self) -> Float32Array:
        """The scores of all hits, flat."""
        return np.array([hit.score for hits in self for hit in hits], dtype=np.float32)


@dataclass(slots=True)
class ClientInMemory:
    """One server, one shard, any collections.

    `searches` and `explains` keep what was asked; `explanation` is what is said of every id.
    """

    collections: dict[str, CollectionConfig] = field(default_factory=dict)
    rows: dict[str, dict[int | str, Float32Array]] = field(default_factory=dict)
    metadata: dict[tuple[str, int | str], dict[str, object]] = field(default_factory=dict)
    """By collection and id, of the rows that have some."""
    damaged: tuple[int | str, ...] = ()
    """Ids that a listing leaves out, if asked to."""
    searches: list[dict[str, object]] = field(default_factory=list)
    explanation: Explanation = field(default_factory=Explanation)
    explains: list[tuple[list[list[float]], int | str, str | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    refused_rows: tuple[int, ...] = ()
    missing_shard: int = 0
    """How many of the next upserts find a shard missing."""
    forget_everything: bool = False
    lose_rows: int = 0
    filters: list[str | None] = field(default_factory=list)
    trainings: list[tuple[str, bool]] = field(default_factory=list)
    training_timeout_s: float | None = None
    interrupted_at: int | str | None = None
    """The id whose upsert is interrupted by Ctrl-C."""
    only_exact: frozenset[int | str] = frozenset()
    """Ids that only an exact search finds."""

    def __enter__(self) -> ClientInMemory:
        """Return itself: there is nothing to connect to."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave everything as it is."""

    def update_collection(self, name: str, *, target_recall: float) -> CollectionConfig:
        """Change the target recall of a collection."""
        config = replace(self.collections[name], target_recall=target_recall)
        self.collections[name] = config
        return config

    def create_collection(
        self,
        name: str,
        *,
        dim: int,
        metric: Metric,
        id_type: IdType,
        index: IndexLike | None = None,
        target_recall: float | None = None,
        filter_fields: FilterFields = (),
    ) -> CollectionConfig:
        """Create a collection."""
        self.collections[name] = CollectionConfig(
            name=name,
            dim=dim,
            metric=metric,
            id_type=id_type,
            index=index_of(index) or IndexConfig(),
            target_recall=target_recall or 0.95,
            filter_fields=filter_fields_of(filter_fields),
        )
        self.rows[name] = {}
        return self.collections[name]

    def drop_collection(self, name: str) -> None:
        """Forget a collection."""
        if self.collections.pop(name, None) is None:
            raise CollectionNotFound(f"collection {name!r} does not exist")
        del self.rows[name]

    def count(self, name: str, *, filter: str | None = None) -> int:
        """Return the number of rows; a filter passes them all."""
        self.filters.append(filter)
        return len(self.rows[name])

    def delete(self, name: str, ids: IdArray | None = None, *, filter: str | None = None) -> int:
        """Delete rows; a filter passes them all."""
        self.filters.append(filter)
        chosen = [*self.rows[name]] if ids is None else ids.tolist()
        return sum(self.rows[name].pop(id_, None) is not None for id_ in chosen)

    def server_info(self) -> ServerInfo:
        """Return the problems."""
        topology = Topology(
            role=Role.SHARD, cluster="c", placement_epoch=1, shards_total=1, shards=()
        )
        return ServerInfo(
            version="1", topology=topology, limits=Limits(), problems=tuple(self.problems)
        )

    def list_collections(self) -> Sequence[CollectionConfig]:
        """Return the configurations."""
        return list(self.collections.values())

    def describe(self, name: str) -> CollectionDescription:
        """Return one shard that is still buffering."""
        if name not in self.collections:
            raise CollectionNotFound(f"collection {name!r} does not exist")
        rows = len(self.rows[name])
        ledger = Ledger(accepted=rows, buffered=rows - self.lose_rows)
        shard = ShardDescription(shard=0, state=ShardState.BUFFERING, training=False, ledger=ledger)
        return CollectionDescription(
            config=self.collections[name],
            incarnation="1",
            shards=(shard,),
            recommended_batch_size=64,
        )

    def upsert(
        self,
        name: str,
        ids: IdArray,
        vectors: VectorArray,
        metadata: Sequence[dict[str, object]] | None = None,
    ) -> UpsertResult:
        """Keep all rows but those at `refused_rows` of the batch."""
        if self.missing_shard:
            self.missing_shard -= 1
            raise ShardUnavailable("1 of 3 rows are not written")
        if vectors.shape[1] != self.collections[name].dim:
            raise DimensionMismatch("wrong", field="vectors")
        for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()[:1]:
            raise InvalidVector("contains NaN", field="vectors", row=row)
        for row, id_ in enumerate(ids.tolist()):
            if id_ == "":
                raise InvalidId("id must not be empty", field="ids", row=row)
        if self.interrupted_at is not None and self.interrupted_at in ids.tolist():
            raise KeyboardInterrupt
        refused = [row for row in self.refused_rows if row < len(ids)]
        errors = tuple(RowError(row, 6, "exists") for row in refused)
        for row, (id_, vector) in enumerate(zip(ids.tolist(), vectors, strict=True)):
            if row not in refused:
                self.rows[name][id_] = vector.astype(np.float32)
                if metadata is not None and metadata[row]:
                    self.metadata[name, id_] = metadata[row]
        return UpsertResult(
            accepted=len(ids) - len(errors), errors=errors, token=Token(incarnation="1")
        )

    def list_rows(
        self, name: str, *, page_size: int, skip_damaged: bool = False, **_asked: object
    ) -> Iterator[RowsView]:
        """Yield the rows in pages; the first row of a page ends the page before it, too."""
        kept = [id_ for id_ in self.rows[name] if id_ not in self.damaged]
        if self.damaged and not skip_damaged:
            raise RowsDamaged("1 row is damaged")
        kind = object if self.collections[name].id_type is IdType.STRING else np.int64
        for first in range(0, max(1, len(kept)), page_size):
            page = kept[first : first + page_size + 1]
            yield RowsView(
                ids=np.array(page, dtype=kind),
                vectors=np.array([self.rows[name][id_] for id_ in page], dtype=np.float32),
                metadata=[dict(self.metadata.get((name, id_), {})) for id_ in page],
                damaged=np.array(self.damaged, dtype=kind) if skip_damaged and not first else None,
            )

    def get(
        self,
        name: str,
        ids: IdArray | list[int | str] | None,
        *,
        filter: str | None = None,
        vectors: bool = True,
        metadata: bool = True,
    ) -> RowsView:
        """Return the rows that exist; a filter passes them all."""
        self.filters.append(filter)
        chosen = [*self.rows[name]] if ids is None else np.asarray(ids).tolist()
        found = [id_ for id_ in chosen if id_ in self.rows[name]]
        kept = np.array([self.rows[name][id_] for id_ in found], dtype=np.float32)
        described = [dict(self.metadata.get((name, id_), {})) for id_ in found]
        return RowsView(
            ids=np.array(found, dtype=object),
            vectors=kept if vectors else None,
            metadata=described if metadata else None,
        )

    def search(self, name: str, queries: VectorArray, k: int = 10, **asked: object) -> Hits:
        """Return the k rows of the largest cosine."""
        self.searches.append({"k": k, "queries": queries.tolist(), **asked})
        hidden = frozenset() if asked.get("exact") else self.only_exact
        ids = [id_ for id_ in self.rows[name] if id_ not in hidden]
        kept = np.array([self.rows[name][id_] for id_ in ids])
        kept /= np.linalg.norm(kept, axis=1, keepdims=True)
        wanted = queries.astype(np.float32)
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        hits = Hits()
        for scores in wanted @ kept.T:
            best = [] if self.forget_everything else np.argsort(-scores)[:k].tolist()
            shown: dict[str, object] | None = {"n": 1} if asked.get("metadata") else None
            hits.append([Hit(ids[row], float(scores[row]), shown) for row in best])
        part = ShardReceipt(shard=0, rows_visible=len(ids), rows_exact=len(ids))
        if asked.get("filter") is not None:
            part = replace(part, rows_passing=len(ids), filter_plan=FilterPlan.EXACT)
        hits.receipt = Receipt(shards=(part,), coverage=1.0)
        return hits

    def explain(
        self, name: str, query: VectorArray, id_: int | str, *, filter: str | None
    ) -> Explanation:
        """Say what the test says."""
        self.explains.append((query.tolist(), id_, filter))
        return self.explanation

    def train(self, name: str, wait: bool = False, *, timeout_s: float | None = None) -> None:
        """Take note of it: brute force needs no index."""
        self.trainings.append((name, wait))
        self.training_timeout_s = timeout_s
