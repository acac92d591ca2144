"""What a collection must answer: a dictionary, counters, and float64 arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tests.shard.filter_samples import holds
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.filters import Filter
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    CollectionConfig,
    Float32Array,
    IdArray,
    IdType,
    Metric,
    WriteMode,
)
from vectorshard.shard.wire.metadata import mapping_from_metadata

Id: TypeAlias = int | str
Position: TypeAlias = tuple[int, int]
"""Shard, row."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A live row: where it is, and its content as the collection keeps it."""

    position: Position
    vector: Float32Array
    metadata: bytes

    def holds(self, vector: Float32Array, metadata: bytes) -> bool:
        """Whether its content is exactly this."""
        return self.vector.tobytes() == vector.tobytes() and self.metadata == metadata


class Model:
    """A collection as a dictionary, and its ledgers as counters."""

    def __init__(self, config: CollectionConfig, shards: int) -> None:
        self.config = config
        self.shards = shards
        self.rows: dict[Id, ModelRow] = {}
        self.accepted: Counter[int] = Counter()
        self.replaced: Counter[int] = Counter()
        self.deleted: Counter[int] = Counter()

    def ids_array(self, ids: Sequence[Id]) -> IdArray:
        """Return ids as the collection takes them."""
        return np.array(ids, dtype=object if self.config.id_type is IdType.STRING else np.int64)

    def shard_of(self, id_: Id) -> int:
        """Return the shard whose range of slots has the id's."""
        slot = int(slots_of(self.ids_array([id_]))[0])
        for shard in range(self.shards):
            ((first, last),) = slots_of_shard(shard, self.shards)
            if first <= slot <= last:
                return shard
        raise AssertionError(f"slot {slot} has no shard")

    def kept(self, vectors: Float32Array) -> Float32Array:
        """Return vectors (rows, dim) as they are kept: of norm 1 under COSINE."""
        exact = vectors.astype(np.float64)
        if self.config.metric is Metric.COSINE:
            exact /= np.sqrt((exact**2).sum(axis=1, keepdims=True))
        return exact.astype(np.float32)

    def write(
        self, ids: Sequence[Id], vectors: Float32Array, metadata: Sequence[bytes], mode: WriteMode
    ) -> list[int]:
        """Write rows; return the indices of those that INSERT refuses."""
        refused = []
        for index, (id_, vector) in enumerate(zip(ids, self.kept(vectors), strict=True)):
            shard, there = self.shard_of(id_), self.rows.get(id_)
            if there is not None:
                if there.holds(vector, metadata[index]):
                    continue
                if mode is WriteMode.INSERT:
                    refused.append(index)
                    continue
                self.replaced[shard] += 1
            self.rows[id_] = ModelRow((shard, self.accepted[shard]), vector, metadata[index])
            self.accepted[shard] += 1
        return refused

    def delete(self, ids: Sequence[Id]) -> int:
        """Delete the ids that are there and return how many were."""
        there = [id_ for id_ in ids if id_ in self.rows]
        for id_ in there:
            del self.rows[id_]
            self.deleted[self.shard_of(id_)] += 1
        return len(there)

    def live(self, shard: int) -> int:
        """Count the live rows of a shard."""
        return sum(row.position[0] == shard for row in self.rows.values())

    def listing(self, first: Position, last: Position) -> list[Id]:
        """Return the ids of the rows at first <= position < last, in their order."""
        places = {row.position: id_ for id_, row in self.rows.items()}
        return [places[place] for place in sorted(places) if first <= place < last]

    def passing(self, filter_: Filter) -> list[Id]:
        """Return the ids of the live rows that pass."""
        return [
            id_
            for id_, row in self.rows.items()
            if holds(filter_, mapping_from_metadata(row.metadata))
        ]

    def scores(self, query: Float32Array, filter_: Filter | None = None) -> dict[Id, float]:
        """Return the score of every live row that passes for a query (dim,), in float64."""
        ids = list(self.rows) if filter_ is None else self.passing(filter_)
        if not ids:
            return {}
        exact = self.kept(query[None])[0].astype(np.float64)
        vectors = np.stack([self.rows[id_].vector for id_ in ids]).astype(np.float64)
        is_l2 = self.config.metric is Metric.L2
        terms = (vectors - exact) ** 2 if is_l2 else vectors * exact
        return dict(zip(ids, terms.sum(axis=1).tolist(), strict=True))

    def is_good(self, score: float, threshold: float | None) -> bool:
        """Whether a score passes a threshold."""
        if threshold is None:
            return True
        return score <= threshold if self.config.metric is Metric.L2 else score >= threshold

    def cost(self, score: float) -> float:
        """Turn a score so that smaller is better."""
        return score if self.config.metric is Metric.L2 else -score
