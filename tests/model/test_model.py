"""Whatever is done to a collection, it answers as a dictionary and float64 arithmetic would.

A state machine writes, reads, trains and restarts a router over shards, which rebuild themselves
meanwhile, and keeps a `Model` beside it. Most histories stay in this process, where a step is
cheap; some go through a router and shards in processes of their own. Values come from a small grid:
vectors repeat, scores tie, and every score under L2 and INNER_PRODUCT is exact, so that the order
of the hits is certain.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conformance.backends import OverProcesses
from tests.conformance.hosts import Hosts, SharedGate, some_hosts
from tests.model.model import Id, Model, Position
from tests.shard.filter_samples import FIELDS
from vectorshard.cli.embedded import open_embedded
from vectorshard.shard.config import BufferConfig, CompactionConfig, EngineConfig, TrainingConfig
from vectorshard.shard.errors import InvalidVector
from vectorshard.shard.filters import Equals, Exists, Filter, Range
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    CollectionConfig,
    CountRequest,
    Cursor,
    DeleteRequest,
    Effort,
    Float32Array,
    GetRequest,
    IdType,
    Include,
    IndexConfig,
    IndexKind,
    ListRequest,
    Metric,
    SearchRequest,
    SearchResult,
    ShardState,
    TrainRequest,
    UpsertRequest,
    WriteMode,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

T = TypeVar("T")

START: Position = (0, 0)
END: Position = (1_000_000, 0)

DIM = 4
GRID = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
METADATA = (
    b"",
    b"",
    metadata_from_mapping({"x": 1}),
    metadata_from_mapping({"another": [True, None, "ä"]}),
    metadata_from_mapping({"lang": "en", "year": 1990}),
    metadata_from_mapping({"lang": ["de", "en"], "public": True, "rating": 0.5}),
)
FILTERS: tuple[Filter, ...] = (
    Equals("lang", "en"),
    Equals("lang", "de") | Range("year", gte=1900.0),
    ~Exists("lang"),
    Equals("public", True) & Range("rating", lt=1.0),
    Equals("lang", "nobody"),
)
MANY_IDS = 300
SCORE_TOLERANCE = 1e-6
ALREADY_EXISTS = 6  # google.rpc.Code

ENGINE = EngineConfig(
    buffer=BufferConfig(absorb_rows=10, absorb_piece_rows=3),
    training=TrainingConfig(calibration_queries=16, checkpoint_min_rows=20),
    compaction=CompactionConfig(
        dead_rows_min=3, dead_codes_min=3, dead_share=0.2, piece_bytes=10 * 4 * DIM, tail_rows=3
    ),
    few_rows_work=0,
)
"""So small that what comes with many rows comes in most histories: absorbing, rebuilding."""

FEW_IDS: dict[IdType, tuple[Id, ...]] = {
    IdType.INT64: (*range(12), -1, -(2**63), 2**63 - 1),
    IdType.STRING: (*"abcdefghij", "B", "ä", "日本", "a" * 512, " "),
}


def grid_vectors(metric: Metric) -> st.SearchStrategy[list[float]]:
    """Return vectors of the grid that the metric takes."""
    vectors = st.lists(st.sampled_from(GRID), min_size=DIM, max_size=DIM)
    return vectors.filter(any) if metric is Metric.COSINE else vectors


class CollectionMachine(RuleBasedStateMachine):
    """Steps upon a collection and its model. Subclasses say of which kind."""

    metric: Metric
    id_type: IdType
    shards: int
    index_kind: IndexKind
    failures: list[str]
    """Of all runs; background work may let the same steps fail elsewhere, or not, the next time."""
    rebuilds: list[Path]
    """Row files of all runs that came from a rebuild."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="vectorshard-model-"))
        self.router = self.opened()
        config = CollectionConfig(
            name="words",
            dim=DIM,
            metric=self.metric,
            id_type=self.id_type,
            index=IndexConfig(kind=self.index_kind, min_training_size=6),
            filter_fields=FIELDS,
        )
        self.run(self.router.create_collection(config))
        self.model = Model(config, self.shards)
        self.cursor: Cursor | None = None
        self.listed_until = START
        self.steps = self.steps_at_start = 0

    def teardown(self) -> None:
        if isinstance(sys.exc_info()[1], Exception):
            self.failures.append(traceback.format_exc())
        self.run(self.router.close())
        self.loop.close()
        self.rebuilds.extend(self.directory.rglob("rows-[1-9]*.f32"))
        shutil.rmtree(self.directory)

    def run(self, call: Awaitable[T]) -> T:
        """Wait for a call."""
        return self.loop.run_until_complete(call)

    def opened(self) -> Shard:
        """Open the shards in the machine's directory."""
        return self.run(open_embedded(self.directory, self.shards, ENGINE))

    def few_ids(self) -> tuple[Id, ...]:
        """Return the ids that most steps use."""
        return FEW_IDS[self.id_type]

    # ---- writes ---------------------------------------------------------------------------------

    def write(
        self,
        ids: Sequence[Id],
        vectors: Float32Array,
        metadata: Sequence[bytes] | None,
        mode: WriteMode,
    ) -> None:
        """Write to both and compare what they say of it."""
        result = self.run(
            self.router.upsert(
                UpsertRequest(
                    collection="words",
                    ids=self.model.ids_array(ids),
                    vectors=vectors,
                    metadata=metadata,
                    mode=mode,
                )
            )
        )
        refused = self.model.write(ids, vectors, metadata or [b""] * len(ids), mode)
        assert [error.row for error in result.errors] == refused
        assert all(error.code == ALREADY_EXISTS for error in result.errors)
        assert result.accepted == len(ids) - len(refused)

    @rule(choice=st.data(), mode=st.sampled_from(WriteMode), with_metadata=st.booleans())
    def write_a_few(self, choice: st.DataObject, mode: WriteMode, with_metadata: bool) -> None:
        ids = choice.draw(st.lists(st.sampled_from(self.few_ids()), max_size=8, unique=True))
        size = len(ids)
        vectors = choice.draw(
            st.lists(grid_vectors(self.metric), min_size=size, max_size=size), label="vectors"
        )
        metadata = st.lists(st.sampled_from(METADATA), min_size=size, max_size=size)
        self.write(
            ids,
            np.array(vectors, dtype=np.float32).reshape(size, DIM),
            choice.draw(metadata, label="metadata") if with_metadata else None,
            mode,
        )

    @rule(choice=st.data(), mode=st.sampled_from(WriteMode))
    def write_again_what_is_there(self, choice: st.DataObject, mode: WriteMode) -> None:
        ids = [id_ for id_ in self.few_ids() if id_ in self.model.rows]
        if not ids:
            return
        chosen = choice.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=5, unique=True))
        rows = [self.model.rows[id_] for id_ in chosen]
        vectors = np.stack([row.vector for row in rows])
        self.write(chosen, vectors, [row.metadata for row in rows], mode)

    @initialize(rows=st.sampled_from([0, 5, 40, 200, 400]))
    def begin(self, rows: int) -> None:
        if rows:
            self.write_many(first=0, rows=rows, mode=WriteMode.INSERT, seed=0)

    @rule(
        first=st.integers(0, MANY_IDS - 1),
        rows=st.integers(20, 250),
        mode=st.sampled_from(WriteMode),
        seed=st.integers(0, 3),
    )
    def write_many(self, first: int, rows: int, mode: WriteMode, seed: int) -> None:
        numbers = range(1_000 + first, 1_000 + first + rows)
        ids: list[Id] = [
            f"word {number}" if self.id_type is IdType.STRING else number for number in numbers
        ]
        vectors = np.random.default_rng(seed).choice(GRID, size=(rows, DIM)).astype(np.float32)
        vectors[~vectors.any(axis=1)] = 1.0
        metadata = [METADATA[number % (3 * len(METADATA)) % len(METADATA)] for number in numbers]
        self.write(ids, vectors, metadata if seed % 2 else None, mode)

    @rule(choice=st.data(), wrong=st.sampled_from([np.nan, np.inf, 2e19]))
    def a_batch_with_a_bad_row_writes_nothing(self, choice: st.DataObject, wrong: float) -> None:
        ids = choice.draw(st.lists(st.sampled_from(self.few_ids()), min_size=1, unique=True))
        bad_row = choice.draw(st.integers(0, len(ids) - 1))
        vectors = np.ones((len(ids), DIM), dtype=np.float32)
        vectors[bad_row, 0] = wrong
        request = UpsertRequest(collection="words", ids=self.model.ids_array(ids), vectors=vectors)
        with pytest.raises(InvalidVector) as refusal:
            self.run(self.router.upsert(request))
        assert refusal.value.row == bad_row

    def delete(self, ids: Sequence[Id]) -> None:
        """Delete from both and compare how many were there."""
        request = DeleteRequest(collection="words", ids=self.model.ids_array(ids))
        assert self.run(self.router.delete(request)).deleted == self.model.delete(ids)

    @rule(choice=st.data())
    def delete_a_few(self, choice: st.DataObject) -> None:
        self.delete(choice.draw(st.lists(st.sampled_from(self.few_ids()), unique=True)))

    @rule(share=st.sampled_from([0.05, 0.1, 0.1, 0.3, 0.3, 1.0]), seed=st.integers(0, 3))
    def delete_many(self, share: float, seed: int) -> None:
        ids = sorted(self.model.rows, key=str)
        chosen = np.random.default_rng(seed).random(len(ids)) < share
        self.delete([id_ for id_, is_chosen in zip(ids, chosen, strict=True) if is_chosen])

    @rule(filter_=st.sampled_from(FILTERS))
    def delete_by_filter(self, filter_: Filter) -> None:
        passing = self.model.passing(filter_)
        request = DeleteRequest(collection="words", filter=filter_)
        assert self.run(self.router.delete(request)).deleted == len(passing)
        assert self.model.delete(passing) == len(passing)

    # ---- reads ----------------------------------------------------------------------------------

    @rule(choice=st.data(), vectors=st.booleans(), metadata=st.booleans())
    def get(self, choice: st.DataObject, vectors: bool, metadata: bool) -> None:
        ids = choice.draw(st.lists(st.sampled_from(self.few_ids()), unique=True))
        self.compare_rows(ids, Include(vectors=vectors, metadata=metadata))

    def compare_rows(self, ids: Sequence[Id], include: Include) -> None:
        """Compare what both have under some ids."""
        request = GetRequest(collection="words", ids=self.model.ids_array(ids), include=include)
        found = self.run(self.router.get(request))
        there = [id_ for id_ in ids if id_ in self.model.rows]
        assert found.ids.tolist() == there
        self.compare_included(there, include, found.vectors, found.metadata)

    def compare_included(
        self,
        ids: Sequence[Id],
        include: Include,
        vectors: Float32Array | None,
        metadata: Sequence[bytes] | None,
    ) -> None:
        """Compare the contents of rows with the model's, to the last bit."""
        rows = [self.model.rows[id_] for id_ in ids]
        if include.vectors:
            assert vectors is not None
            assert vectors.shape == (len(ids), DIM)
            assert vectors.tobytes() == b"".join(row.vector.tobytes() for row in rows)
        else:
            assert vectors is None or not ids
        if include.metadata:
            assert metadata is not None
            assert list(metadata) == [row.metadata for row in rows]
        else:
            assert metadata is None or not ids

    @rule(choice=st.data())
    def count(self, choice: st.DataObject) -> None:
        ids = choice.draw(st.lists(st.sampled_from(self.few_ids()), unique=True))
        of_ids = CountRequest(collection="words", ids=self.model.ids_array(ids))
        assert self.run(self.router.count(of_ids)) == sum(id_ in self.model.rows for id_ in ids)
        assert self.run(self.router.count(CountRequest(collection="words"))) == len(self.model.rows)

    @rule(filter_=st.sampled_from(FILTERS), page_size=st.sampled_from([3, 40, 1_000]))
    def count_and_list_by_filter(self, filter_: Filter, page_size: int) -> None:
        passing = self.model.passing(filter_)
        request = CountRequest(collection="words", filter=filter_)
        assert self.run(self.router.count(request)) == len(passing)
        listed: list[Id] = []
        cursor: Cursor | None = None
        while True:
            page = self.run(
                self.router.list_rows(
                    ListRequest(
                        collection="words", page_size=page_size, cursor=cursor, filter=filter_
                    )
                )
            )
            listed += page.ids.tolist()
            cursor = page.cursor
            if cursor is None:
                break
        assert Counter(listed) == Counter(passing)

    @rule(page_size=st.sampled_from([1, 2, 5, 50, 1_000]))
    def list_a_page(self, page_size: int) -> None:
        """A listing that other steps interrupt."""
        self.next_page(page_size, Include(vectors=True))

    def next_page(self, page_size: int, include: Include) -> list[Id]:
        """Take the next page of the listing under way, or the first of a new one."""
        request = ListRequest(
            collection="words", page_size=page_size, cursor=self.cursor, include=include
        )
        page = self.run(self.router.list_rows(request))
        ids: list[Id] = page.ids.tolist()
        assert ids == self.model.listing(self.listed_until, END)[:page_size]
        self.compare_included(ids, include, page.vectors, page.metadata)
        until = END if page.cursor is None else (page.cursor.shard, page.cursor.row)
        assert ids == self.model.listing(self.listed_until, until)
        self.cursor = page.cursor
        self.listed_until = START if page.cursor is None else until
        return ids

    @rule(page_size=st.sampled_from([3, 40, 1_000]))
    def list_everything(self, page_size: int) -> None:
        self.cursor, self.listed_until = None, START
        ids = self.next_page(page_size, Include(metadata=True))
        while self.cursor is not None:
            ids += self.next_page(page_size, Include(metadata=True))
        assert Counter(ids) == Counter(self.model.rows.keys())

    # ---- searches -------------------------------------------------------------------------------

    def search(
        self,
        queries: Float32Array,
        k: int,
        effort: Effort,
        threshold: float | None = None,
        include: Include | None = None,
        filter_: Filter | None = None,
    ) -> SearchResult:
        """Search, and check what holds of every answer: its form, its scores, its receipt."""
        include = include or Include()
        request = SearchRequest(
            collection="words",
            queries=queries,
            k=k,
            effort=effort,
            score_threshold=threshold,
            include=include,
            filter=filter_,
        )

        async def search() -> SearchResult:
            return await self.router.search(request)

        result = self.run(search())
        assert result.receipt.coverage == 1.0
        assert result.receipt.shards_answered == result.receipt.shards_total == self.shards
        for receipt in result.receipt.shards:
            assert receipt.rows_visible == self.model.live(receipt.shard)
            assert receipt.rows_exact <= receipt.rows_visible
            assert receipt.nprobe <= receipt.nlist
            if effort.exact:
                seen = receipt.rows_visible if filter_ is None else receipt.rows_passing
                assert receipt.rows_exact == seen
        if filter_ is not None:
            passing = sum(receipt.rows_passing for receipt in result.receipt.shards)
            assert passing == len(self.model.passing(filter_))
        self.compare_included(result.hits.ids.tolist(), include, result.vectors, result.metadata)
        for query, ids, scores in zip(queries, *split_by_query(result), strict=True):
            self.check_hits(query, ids, scores, k, threshold, filter_)
        return result

    def check_hits(
        self,
        query: Float32Array,
        ids: Sequence[Id],
        scores: Float32Array,
        k: int,
        threshold: float | None,
        filter_: Filter | None,
    ) -> None:
        """Check hits that may be fewer than there are: each live, well scored, in its place."""
        truth = self.model.scores(query, filter_)
        assert len(ids) == len(set(ids)) <= k
        tolerance = SCORE_TOLERANCE if self.metric is Metric.COSINE else 0.0
        np.testing.assert_allclose(
            scores, [truth[id_] for id_ in ids], rtol=SCORE_TOLERANCE, atol=tolerance
        )
        assert all(self.model.is_good(score, threshold) for score in scores.tolist())
        keys = [(self.model.cost(s), id_) for s, id_ in zip(scores.tolist(), ids, strict=True)]
        assert keys == sorted(keys)

    def check_complete(
        self,
        query: Float32Array,
        ids: Sequence[Id],
        k: int,
        threshold: float | None,
        filter_: Filter | None = None,
    ) -> None:
        """Check that hits are the k best of all live rows that pass."""
        truth = self.model.scores(query, filter_)
        if self.metric is not Metric.COSINE:
            good = [id_ for id_ in truth if self.model.is_good(truth[id_], threshold)]
            best = sorted(good, key=lambda id_: (self.model.cost(truth[id_]), id_))
            assert list(ids) == best[:k]
            return
        # Unit vectors are rounded: rows that tie may rank either way, though nothing better is out.
        costs = {id_: self.model.cost(truth[id_]) for id_ in truth}
        limit = np.inf if threshold is None else -threshold
        assert len(ids) >= min(k, sum(cost < limit - SCORE_TOLERANCE for cost in costs.values()))
        if len(ids) == k:
            limit = max(costs[id_] for id_ in ids)
        left_out = [cost for id_, cost in costs.items() if id_ not in ids]
        assert all(cost >= limit - SCORE_TOLERANCE for cost in left_out)

    @rule(
        choice=st.data(),
        k=st.integers(1, 40),
        exact=st.booleans(),
        included=st.booleans(),
        threshold=st.sampled_from([None, None, 0.5, 3.0]),
        filter_=st.none() | st.sampled_from(FILTERS),
    )
    def search_everything(
        self,
        choice: st.DataObject,
        k: int,
        exact: bool,
        included: bool,
        threshold: float | None,
        filter_: Filter | None,
    ) -> None:
        """An exact search finds the k best of all rows; so does one of every list of vectors."""
        vectors = choice.draw(st.lists(grid_vectors(self.metric), max_size=5))
        queries = np.array(vectors, dtype=np.float32).reshape(len(vectors), DIM)
        effort = Effort(exact=True) if exact else Effort(nprobe=1_000)
        include = Include(vectors=included, metadata=included)
        result = self.search(queries, k, effort, threshold, include, filter_)
        if exact or self.index_kind is IndexKind.IVF_FLAT:
            for query, ids, _ in zip(queries, *split_by_query(result), strict=True):
                self.check_complete(query, ids, k, threshold, filter_)

    @rule(
        choice=st.data(),
        k=st.integers(1, 40),
        target_recall=st.sampled_from([0.0, 0.8, 0.99]),
        filter_=st.none() | st.sampled_from(FILTERS),
    )
    def search_for_a_recall(
        self, choice: st.DataObject, k: int, target_recall: float, filter_: Filter | None
    ) -> None:
        vectors = choice.draw(st.lists(grid_vectors(self.metric), min_size=1, max_size=5))
        queries = np.array(vectors, dtype=np.float32)
        self.search(queries, k, Effort(target_recall=target_recall), filter_=filter_)

    @precondition(lambda self: self.metric is Metric.L2 and self.model.rows)
    @rule()
    def every_row_is_its_own_nearest_hit(self) -> None:
        """Only a row of the same vector and a smaller id ranks before it."""
        ids = list(self.model.rows)[-200:]
        queries = np.stack([self.model.rows[id_].vector for id_ in ids])
        result = self.search(queries, 1, Effort(exact=True))
        assert result.hits.counts.tolist() == [1] * len(ids)
        for id_, hit in zip(ids, result.hits.ids.tolist(), strict=True):
            assert self.model.rows[hit].vector.tobytes() == self.model.rows[id_].vector.tobytes()
            assert hit <= id_

    # ---- the index, and the end -----------------------------------------------------------------

    @rule()
    def train(self) -> None:
        request = TrainRequest(collection="words", wait=True)
        for shard in self.run(self.router.train(request)):
            if live := self.model.live(shard.shard):
                assert shard.state is ShardState.TRAINED
                assert shard.ledger.indexed == live
                assert shard.ledger.buffered == 0
                assert 0 <= shard.nprobe <= shard.nlist

    @precondition(lambda self: self.steps >= self.steps_at_start + 5)
    @rule()
    def restart(self) -> None:
        self.run(self.router.close())
        self.router = self.opened()
        self.steps_at_start = self.steps

    @invariant()
    def the_best_rows_are_found(self) -> None:
        """After every step, and so at many moments of the training and absorbing that follow."""
        self.steps += 1
        query = np.random.default_rng(self.steps).choice(GRID, size=(1, DIM)).astype(np.float32)
        query[~query.any(axis=1)] = 1.0
        for effort in (Effort(exact=True), Effort(nprobe=1_000)):
            result = self.search(query, 10, effort)
            if effort.exact or self.index_kind is IndexKind.IVF_FLAT:
                self.check_complete(query[0], result.hits.ids.tolist(), 10, None)

    @invariant()
    def the_ledger_counts_what_the_model_counts(self) -> None:
        description = self.run(self.router.describe("words"))
        assert [shard.shard for shard in description.shards] == list(range(self.shards))
        for shard in description.shards:
            ledger = shard.ledger
            assert ledger.adds_up
            assert ledger.live == self.model.live(shard.shard)
            assert ledger.accepted == self.model.accepted[shard.shard]
            assert ledger.replaced == self.model.replaced[shard.shard]
            assert ledger.deleted == self.model.deleted[shard.shard]


class MachineOverProcesses(CollectionMachine):
    """The same steps, through gRPC, a router process and shard processes."""

    hosts: Hosts

    def opened(self) -> Shard:
        backend = OverProcesses(self.shards, routers=(1,))
        return self.run(backend.open(self.directory, ENGINE, SharedGate(), self.hosts))


def split_by_query(result: SearchResult) -> tuple[list[list[Id]], list[Float32Array]]:
    """Return the ids and the scores of each query."""
    ends = np.cumsum(result.hits.counts).tolist()
    begins = [0, *ends[:-1]]
    parts = [slice(*ends_of_query) for ends_of_query in zip(begins, ends, strict=False)]
    ids: list[Id] = result.hits.ids.tolist()
    return [ids[part] for part in parts], [result.hits.scores[part] for part in parts]


IN_THIS_PROCESS = [
    (Metric.L2, IdType.INT64, 1),
    (Metric.COSINE, IdType.STRING, 1),
    *((metric, id_type, 3) for metric in Metric for id_type in IdType),
]
"""Metric, kind of ids, shards. Over one shard, two kinds are enough: conformance has the others."""

OFTEN = [
    (Metric.COSINE, IdType.STRING, 1),
    (Metric.L2, IdType.INT64, 3),
    (Metric.L2, IdType.STRING, 3),
    (Metric.INNER_PRODUCT, IdType.STRING, 3),
    (Metric.COSINE, IdType.INT64, 3),
]
"""What `make test` runs of them: every metric, and both kinds of ids with most."""


@pytest.mark.parametrize(
    ("metric", "id_type", "shards"),
    OFTEN,
    ids=[f"{metric.name}-{id_type.name}-{shards}" for metric, id_type, shards in OFTEN],
)
def test_a_collection_answers_as_a_dictionary_would(
    metric: Metric, id_type: IdType, shards: int
) -> None:
    index_kind = IndexKind.IVF_FLAT if id_type is IdType.INT64 else IndexKind.IVF_PQ
    kind = {"metric": metric, "id_type": id_type, "shards": shards, "index_kind": index_kind}
    run_histories(CollectionMachine, kind, steps=100)


@pytest.mark.system_long
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    ("metric", "id_type", "shards"),
    IN_THIS_PROCESS,
    ids=[f"{metric.name}-{id_type.name}-{shards}" for metric, id_type, shards in IN_THIS_PROCESS],
)
def test_more_and_longer_histories(
    metric: Metric, id_type: IdType, shards: int, number: int
) -> None:
    index_kind = IndexKind.IVF_FLAT if id_type is IdType.INT64 else IndexKind.IVF_PQ
    kind = {"metric": metric, "id_type": id_type, "shards": shards, "index_kind": index_kind}
    run_histories(CollectionMachine, kind, steps=150, seed_number=number)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Processes that serve."""
    with some_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.mark.parametrize(
    ("metric", "id_type"),
    [(Metric.L2, IdType.STRING), (Metric.COSINE, IdType.INT64)],
    ids=["L2-STRING", "COSINE-INT64"],
)
def test_a_collection_in_other_processes_answers_as_a_dictionary_would(
    hosts: Hosts, metric: Metric, id_type: IdType
) -> None:
    kind = {"metric": metric, "id_type": id_type, "shards": 2, "hosts": hosts}
    kind["index_kind"] = IndexKind.IVF_PQ
    run_histories(MachineOverProcesses, kind, steps=50)


def run_histories(
    machine: type[CollectionMachine], kind: dict[str, Any], *, steps: int, seed_number: int = 0
) -> None:
    """Run three histories of so many steps; their seed depends on the kind and a number alone."""
    failures: list[str] = []
    rebuilds: list[Path] = []
    number = zlib.crc32(f"{kind['metric']} {kind['id_type']} {kind['shards']}".encode())
    number += seed_number
    of_this_kind = type("Machine", (machine,), {**kind, "failures": failures, "rebuilds": rebuilds})
    bounds = settings(
        # The first is hypothesis's simplest: the same dull step again and again. A history of
        # 100 steps costs two seconds of CPU; `make test-long` has more of them.
        max_examples=3,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking a failure takes minutes: add Phase.shrink for it
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(number)(of_this_kind), settings=bounds)
    except Exception as error:
        if failures:
            error.add_note(f"the first failure, of seed {number}:\n{failures[0]}")
        raise
    assert rebuilds or steps < 100  # few steps may not come to one
