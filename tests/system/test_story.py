"""The story that the project starts from: rows are found while they are buffered, while the index
trains, after it has trained, and after a restart. None is ever lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.system.conftest import Server, Starter, StartServer, adds_up, wait_until
from vectorshard import Client, Hits
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.types import (
    Float32Array,
    IndexConfig,
    IndexKind,
    Metric,
    NlistRule,
    ShardState,
)

pytestmark = pytest.mark.system

NAME = "story"
DIM = 64
BATCH_ROWS = 100
LOOK_EVERY_S = 0.002
"""Far less than a training takes. A loop without it keeps a core busy."""
MIN_TRAINING_SIZE = 1_000


@dataclass(slots=True)
class Witness:
    """Describes the collection again and again, and keeps what each shard was seen in.

    A training may take some milliseconds only: nobody who does other things meanwhile would be
    sure to see it.
    """

    server: Server
    looks: int = 0
    states: dict[int, set[ShardState]] = field(default_factory=dict)
    training: set[int] = field(default_factory=set)
    broken: list[CollectionDescription] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look from a thread of its own, for as long as the context lasts."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        try:
            with self.server.client() as client:
                while not self._over.wait(LOOK_EVERY_S):
                    self.note(client.describe(NAME))
        except Exception as failure:  # told by the thread that waits for this one
            self.failures.append(failure)

    def note(self, description: CollectionDescription) -> None:
        """Keep what there is to see."""
        self.looks += 1
        for shard in description.shards:
            self.states.setdefault(shard.shard, set()).add(shard.state)
            if shard.training:
                self.training.add(shard.shard)
        if not adds_up(description):
            self.broken.append(description)


def check_receipt(hits: Hits, shards: int, rows: int, *, exact: bool) -> None:
    """Assert that an answer covers all `rows`, on all shards."""
    receipt = hits.receipt
    assert (receipt.shards_total, receipt.shards_answered) == (shards, shards)
    assert receipt.coverage == 1.0
    assert [part.shard for part in receipt.shards] == list(range(shards))
    assert not any(part.missing_reason for part in receipt.shards)
    assert sum(part.rows_visible for part in receipt.shards) == rows
    if exact:
        assert all(part.rows_exact == part.rows_visible for part in receipt.shards)
        assert not any(part.nprobe for part in receipt.shards)


def check_all_found(client: Client, vectors: Float32Array, shards: int) -> None:
    """Assert that every vector is its own nearest hit, and that nothing else is there."""
    rows = len(vectors)
    hits = client.search(NAME, vectors, 1, exact=True)
    assert hits.ids.tolist() == list(range(rows))
    assert (hits.scores <= 1e-4).all()
    check_receipt(hits, shards, rows, exact=True)
    assert client.count(NAME) == rows


def check_settled(client: Client, vectors: Float32Array, shards: int) -> CollectionDescription:
    """Assert that nothing is lost, on any path of a search, and return the description."""
    check_all_found(client, vectors, shards)
    description = client.describe(NAME)
    assert adds_up(description)
    assert description.ledger.accepted == description.ledger.live == len(vectors)
    everywhere = max(shard.nlist for shard in description.shards) or 1
    hits = client.search(NAME, vectors, 1, nprobe=everywhere)
    assert np.mean(hits.ids == np.arange(len(vectors))) >= 0.99  # by codes, which may be alike
    check_receipt(hits, shards, len(vectors), exact=False)
    stored = client.get(NAME, np.arange(len(vectors)))
    assert stored.vectors is not None
    np.testing.assert_array_equal(stored.vectors, vectors)
    return description


def is_settled(description: CollectionDescription) -> bool:
    """Whether every shard has its index, and none is being trained."""
    return all(
        shard.state is ShardState.TRAINED and not shard.training for shard in description.shards
    )


@pytest.mark.parametrize(
    ("start_either", "shards", "rows"),
    [
        pytest.param("embedded", 1, 1_200, marks=pytest.mark.system_long),
        ("embedded", 2, 2_400),
        ("fleet", 2, 2_400),
    ],
    indirect=["start_either"],
)
def test_every_acknowledged_row_is_found_at_every_moment(
    start_either: StartServer, shards: int, rows: int
) -> None:
    vectors = np.random.default_rng(1_200).standard_normal((rows, DIM), dtype=np.float32)
    server = start_either(shards)
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        witness = Witness(server)
        witness.note(client.describe(NAME))
        searches_while_training = 0
        with witness.looking():
            for first in range(0, rows, BATCH_ROWS):
                last = first + BATCH_ROWS
                summary = client.upsert(NAME, np.arange(first, last), vectors[first:last])
                assert summary.accepted == BATCH_ROWS
                assert not summary.errors
                check_all_found(client, vectors[:last], shards)
                while any(shard.training for shard in client.describe(NAME).shards):
                    check_all_found(client, vectors[:last], shards)
                    searches_while_training += 1
            wait_until(lambda: is_settled(client.describe(NAME)) or bool(witness.failures))
            wait_until(lambda: witness.looks > 0)
        assert searches_while_training > 0
        assert not witness.failures
        assert not witness.broken
        witness.note(client.describe(NAME))

        everyone = set(range(shards))
        for shard in everyone:
            assert {ShardState.BUFFERING, ShardState.TRAINED} <= witness.states[shard]
        assert witness.training == everyone
        description = check_settled(client, vectors, shards)
        for part in description.shards:
            assert part.ledger.indexed >= MIN_TRAINING_SIZE
            assert part.rows_trained_on >= MIN_TRAINING_SIZE
            assert part.generation >= 1

    for end in (server.stop, server.kill):
        end()
        server.start()
        with server.client() as client:
            check_settled(client, vectors, shards)
            wait_until(lambda: is_settled(client.describe(NAME)))
            description = check_settled(client, vectors, shards)
            assert all(part.ledger.indexed >= MIN_TRAINING_SIZE for part in description.shards)
    server.stop()


def test_every_acknowledged_row_is_found_while_an_index_is_trained_anew(
    start_server: Starter,
) -> None:
    vectors = np.random.default_rng(5).standard_normal((2_200, DIM), dtype=np.float32)
    server = start_server(1)
    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, np.arange(2_000), vectors[:2_000])
        wait_until(lambda: is_settled(client.describe(NAME)))
        witness = Witness(server)
        with witness.looking():
            for first in range(2_000, 2_200, BATCH_ROWS):
                generation = client.describe(NAME).shards[0].generation
                client.train(NAME)
                client.upsert(
                    NAME, np.arange(first, first + BATCH_ROWS), vectors[first : first + BATCH_ROWS]
                )
                while client.describe(NAME).shards[0].generation == generation:
                    check_all_found(client, vectors[: first + BATCH_ROWS], 1)
        assert not witness.failures
        assert not witness.broken
        assert witness.training == {0}
        assert witness.states == {0: {ShardState.TRAINED}}
        check_settled(client, vectors, 1)
    server.stop()


def test_every_acknowledged_row_is_found_while_rows_are_absorbed(start_server: Starter) -> None:
    """One inverted list, which grows and moves in memory with every piece that is absorbed."""
    rows, piece = 60_000, 4_000
    vectors = np.random.default_rng(6).standard_normal((rows, DIM), dtype=np.float32)
    index = IndexConfig(
        kind=IndexKind.IVF_FLAT, min_training_size=12_000, nlist_rule=NlistRule.FIXED, nlist=1
    )
    server = start_server(1)
    written = 0
    failures: list[BaseException] = []
    over = threading.Event()

    def keep_searching() -> None:
        rng = np.random.default_rng(7)
        try:
            with server.client() as searcher:
                while not over.is_set():
                    sample = rng.choice(written, size=64)
                    hits = searcher.search(NAME, vectors[sample], 1, nprobe=1)
                    assert hits.ids.tolist() == sample.tolist()
        except BaseException as failure:  # told by the thread that waits for this one
            failures.append(failure)

    with server.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=index)
        client.upsert(NAME, np.arange(12_000), vectors[:12_000])
        wait_until(lambda: is_settled(client.describe(NAME)))
        written = 12_000
        searching = threading.Thread(target=keep_searching)
        searching.start()
        try:
            while written < rows and not failures:
                last = min(written + piece, rows)
                client.upsert(NAME, np.arange(written, last), vectors[written:last])
                written = last
            wait_until(lambda: client.describe(NAME).ledger.buffered < 2_000 or bool(failures))
        finally:
            over.set()
            searching.join()
        assert not failures
        [shard] = client.describe(NAME).shards
        assert shard.ledger.adds_up
        assert shard.ledger.live == rows
    server.stop()
