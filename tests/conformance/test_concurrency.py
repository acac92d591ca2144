"""Many callers at once: each finds its own acknowledged writes, whatever the others do."""

from __future__ import annotations

import asyncio

import numpy as np

from tests.conformance.backends import Stage
from tests.conformance.conftest import Until
from tests.conformance.reference import EVERY_LIST, assert_exact, hits_of, ids_found
from tests.shard.samples import Corpus, config_of, corpus_of, some_vectors
from vectorshard.shard.types import Metric, ShardState, TrainRequest

WRITERS = 6
TURNS = 8
ROWS = 10
TRAININGS = 12


async def test_every_writer_finds_its_own_writes_while_others_write_search_and_train(
    stage: Stage,
) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(100, seed=99))
    busy = True

    async def write(writer: int) -> Corpus:
        """Write, replace and delete rows of its own; return what must be there in the end."""
        ids = np.arange(ROWS * TURNS) + 10**9 * (writer + 1)
        vectors = some_vectors(ROWS * TURNS, seed=writer)
        for turn in range(TURNS):
            rows = slice(ROWS * turn, ROWS * (turn + 1))
            await stage.put(Corpus(ids[rows], vectors[rows]))
            found = await stage.search(vectors[rows], 1, exact=True)
            assert ids_found(found) == [[id_] for id_ in ids[rows].tolist()]
            replaced = slice(rows.start, rows.start + 3)
            vectors[replaced] += 2
            await stage.put(Corpus(ids[replaced], vectors[replaced]))
            found = await stage.search(vectors[replaced], 1, nprobe=EVERY_LIST)
            assert ids_found(found) == [[id_] for id_ in ids[replaced].tolist()]
            dead = slice(rows.stop - 2, rows.stop)
            assert await stage.delete(ids[dead]) == 2
            for hits in ids_found(await stage.search(vectors[dead], 5, exact=True)):
                assert not set(hits) & set(ids[dead].tolist())
        kept = np.flatnonzero(np.arange(len(ids)) % ROWS < ROWS - 2)
        return Corpus(ids[kept], vectors[kept])

    async def search() -> None:
        """Search all the time; no answer may hold an id twice or a score out of order."""
        queries = some_vectors(8, seed=50)
        while busy:
            result = await stage.search(queries)
            assert result.hits.counts.tolist() == [10] * 8
            for ids, scores in hits_of(result):
                assert len(set(ids.tolist())) == len(ids)
                assert (np.diff(scores) >= 0).all()

    async def train() -> None:
        for _ in range(TRAININGS):
            if busy:
                await stage.train()

    async def write_all() -> list[Corpus]:
        nonlocal busy
        try:
            return list(await asyncio.gather(*map(write, range(WRITERS))))
        finally:
            busy = False

    corpora, *_ = await asyncio.gather(write_all(), search(), search(), train())
    everything = [corpus_of(100, seed=99), *corpora]
    corpus = Corpus(
        np.concatenate([part.ids for part in everything]),
        np.concatenate([part.vectors for part in everything]),
    )
    queries = some_vectors(10, seed=51)
    for exact in (True, False):
        result = await stage.search(queries, exact=exact, nprobe=0 if exact else EVERY_LIST)
        assert_exact(result, Metric.L2, queries, corpus, 10)
    ledger = (await stage.describe()).ledger
    assert ledger.live == len(corpus)
    assert ledger.accepted == 100 + WRITERS * TURNS * (ROWS + 3)
    assert ledger.replaced == WRITERS * TURNS * 3
    assert ledger.deleted == WRITERS * TURNS * 2


async def test_a_replaced_row_is_never_seen_twice_nor_missed(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(150))
    await stage.train()
    busy = True
    ids, vectors = np.array([10**9]), some_vectors(1, seed=7) * 50

    async def replace() -> None:
        nonlocal busy
        for turn in range(60):
            await stage.upsert(ids, vectors + np.float32(turn / 100))
        busy = False

    async def search() -> None:
        while busy:
            for exact in (True, False):
                result = await stage.search(vectors, 5, exact=exact, nprobe=0 if exact else 99)
                assert ids_found(result)[0].count(10**9) == 1

    await stage.upsert(ids, vectors)
    await asyncio.gather(replace(), search())


async def test_collections_come_and_go_while_others_are_used(stage: Stage) -> None:
    corpus = corpus_of(80)
    await stage.create(config_of("steady"))
    await stage.put(corpus)

    async def come_and_go(name: str) -> None:
        for _ in range(4):
            await stage.shard.create_collection(config_of(name, min_training_size=10))
            await stage.shard.drop_collection(name)

    async def use() -> None:
        for _ in range(20):
            found = await stage.search(corpus.vectors[:5], 1, exact=True)
            assert ids_found(found) == [[id_] for id_ in corpus.ids[:5].tolist()]

    await asyncio.gather(*(come_and_go(f"passing-{number}") for number in range(4)), use())
    assert [entry.config.name for entry in await stage.shard.list_collections()] == ["steady"]


async def test_a_collection_can_be_dropped_while_it_trains(stage: Stage, until: Until) -> None:
    await stage.create(config_of())
    corpus = corpus_of(200)
    await stage.put(corpus)
    stage.gate.end.clear()
    await stage.shard.train(TrainRequest(collection="words"))
    await until(lambda seen: all(shard.training for shard in seen.shards))
    await stage.shard.drop_collection("words")
    await stage.create(config_of(min_training_size=20))
    assert (await stage.describe()).ledger.accepted == 0
    stage.gate.open()
    await stage.put(corpus)
    seen = await until(lambda seen: all(s.state is ShardState.TRAINED for s in seen.shards))
    assert {shard.generation for shard in seen.shards} == {1}
    queries = corpus.vectors[:5]
    assert_exact(await stage.search(queries, exact=True), Metric.L2, queries, corpus, 10)
