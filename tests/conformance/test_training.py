"""Training and absorbing: nothing waits for them and nothing is lost by them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.conformance.conftest import Until
from tests.conformance.reference import EVERY_LIST, assert_exact, ids_found
from tests.shard.samples import Corpus, config_of, corpus_of, int64s, some_vectors
from vectorshard.shard.index.calibration import nlist_for
from vectorshard.shard.types import (
    IndexKind,
    Metric,
    NlistRule,
    ShardState,
    TrainRequest,
)


async def assert_all_found(stage: Stage, corpus: Corpus) -> None:
    """Assert that every row is its own nearest hit, exactly and by way of the index."""
    own = [[id_] for id_ in corpus.ids.tolist()]
    assert ids_found(await stage.search(corpus.vectors, 1, exact=True)) == own
    assert ids_found(await stage.search(corpus.vectors, 1, nprobe=EVERY_LIST)) == own


async def test_training_begins_by_itself_when_a_shard_has_enough_rows(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of(min_training_size=60))
    corpus = corpus_of(200 * stage.shards_total)
    await stage.put(corpus.take(slice(0, 50)))
    assert {shard.state for shard in (await stage.describe()).shards} == {ShardState.BUFFERING}
    await stage.put(corpus.take(slice(50, len(corpus))))
    await until(lambda seen: all(shard.state is ShardState.TRAINED for shard in seen.shards))
    await assert_all_found(stage, corpus)
    assert (await stage.describe()).ledger.live == len(corpus)


async def test_every_acknowledged_row_is_found_at_each_moment_of_a_training(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(400)

    async def written(first: int, last: int) -> None:
        await stage.put(corpus.take(slice(first, last)))
        await assert_all_found(stage, corpus.take(slice(0, last)))

    await written(0, 200)
    stage.gate.start.clear()
    stage.gate.end.clear()
    await stage.shard.train(TrainRequest(collection="words"))
    await until(lambda seen: all(shard.training for shard in seen.shards))
    await written(200, 250)
    stage.gate.start.set()
    await written(250, 300)
    stage.gate.end.set()
    await until(lambda seen: not any(shard.training for shard in seen.shards))
    await written(300, 320)
    for last in range(330, 401, 10):
        await written(last - 10, last)
    ledger = (await stage.describe()).ledger
    assert (ledger.accepted, ledger.live) == (400, 400)
    assert ledger.indexed >= 200


async def test_what_is_deleted_or_replaced_while_an_index_trains_stays_so(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(400)
    await stage.put(corpus)
    stage.gate.end.clear()
    await stage.shard.train(TrainRequest(collection="words"))
    await until(lambda seen: all(shard.training for shard in seen.shards))
    await stage.delete(corpus.ids[:100])
    vectors = corpus.vectors.copy()
    vectors[100:150] = some_vectors(50, seed=8)
    await stage.upsert(corpus.ids[100:150], vectors[100:150])
    stage.gate.open()
    await until(lambda seen: not any(shard.training for shard in seen.shards))
    now = Corpus(corpus.ids, vectors).take(slice(100, 400))
    queries = np.concatenate([corpus.vectors[:20], corpus.vectors[100:110], vectors[100:110]])
    for exact, nprobe in ((True, 0), (False, EVERY_LIST)):
        result = await stage.search(queries, exact=exact, nprobe=nprobe)
        assert_exact(result, Metric.L2, queries, now, 10)
    ledger = (await stage.describe()).ledger
    assert (ledger.deleted, ledger.replaced, ledger.live) == (100, 50, 300)


async def test_deleting_everything_while_an_index_trains_does_no_harm(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    corpus = corpus_of(200)
    await stage.put(corpus)
    stage.gate.start.clear()
    training = asyncio.create_task(stage.train())
    await until(lambda seen: all(shard.training for shard in seen.shards))
    await stage.delete(corpus.ids)
    stage.gate.open()
    await training
    assert ids_found(await stage.search(corpus.vectors[:2])) == [[], []]
    again = corpus_of(200, seed=5)
    await stage.put(again)
    await assert_all_found(stage, again)


async def test_training_with_wait_returns_the_trained_shards(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(300))
    request = TrainRequest(collection="words", wait=True)
    for generation in (1, 2):
        shards = await stage.shard.train(request)
        assert [shard.shard for shard in shards] == list(range(stage.shards_total))
        for shard in shards:
            assert (shard.state, shard.generation) == (ShardState.TRAINED, generation)


async def test_training_without_wait_returns_at_once(stage: Stage, until: Until) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(300))
    stage.gate.start.clear()
    shards = await stage.shard.train(TrainRequest(collection="words"))
    assert {shard.state for shard in shards} <= {ShardState.BUFFERING, ShardState.TRAINING}
    stage.gate.open()
    await until(lambda seen: all(shard.state is ShardState.TRAINED for shard in seen.shards))


async def test_training_waits_for_a_training_that_starts_after_it_was_asked_for(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(300))
    stage.gate.end.clear()
    await stage.shard.train(TrainRequest(collection="words"))
    await until(lambda seen: all(shard.training for shard in seen.shards))
    corpus = corpus_of(600, seed=4)
    await stage.put(corpus)
    waiting = asyncio.create_task(stage.train())
    stage.gate.open()
    await waiting
    live = (await stage.describe()).ledger.live
    assert sum(shard.rows_trained_on for shard in (await stage.describe()).shards) == live


async def test_who_stops_waiting_for_a_training_spoils_it_for_nobody(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(300))
    stage.gate.end.clear()
    await stage.shard.train(TrainRequest(collection="words"))
    await until(lambda seen: all(shard.training for shard in seen.shards))
    impatient, patient = (asyncio.create_task(stage.train()) for _ in range(2))
    await stage.describe()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    stage.gate.open()
    await asyncio.wait_for(patient, 30)
    # A third where the two came to a shard on both sides of a training's begin.
    assert {shard.generation for shard in (await stage.describe()).shards} <= {2, 3}


async def test_training_an_empty_collection_leaves_it_buffering(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.train()
    assert {shard.state for shard in (await stage.describe()).shards} == {ShardState.BUFFERING}


async def test_a_few_rows_can_be_trained(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(3)
    await stage.put(corpus)
    await stage.train()
    await assert_all_found(stage, corpus)


@pytest.mark.parametrize("kind", list(IndexKind))
async def test_rows_that_are_all_alike_can_be_trained(stage: Stage, kind: IndexKind) -> None:
    await stage.create(config_of(kind=kind))
    corpus = Corpus(corpus_of(200).ids, np.ones((200, 8), np.float32))
    await stage.put(corpus)
    await stage.train()
    queries = corpus.vectors[:1]
    assert_exact(await stage.search(queries, exact=True), Metric.L2, queries, corpus, 10)
    result = await stage.search(queries, nprobe=EVERY_LIST)
    assert result.hits.scores.tolist() == [0.0] * 10


async def test_rows_written_after_training_are_absorbed_and_found_all_the_while(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    rows = 300 + 120 * stage.shards_total
    corpus = corpus_of(rows)
    await stage.put(corpus.take(slice(0, 300)))
    await stage.train()
    await stage.put(corpus.take(slice(300, rows)))
    await assert_all_found(stage, corpus)
    absorbed = await until(lambda seen: all(shard.ledger.buffered < 50 for shard in seen.shards))
    assert absorbed.ledger.indexed > 300
    assert {shard.generation for shard in absorbed.shards} == {1}
    await assert_all_found(stage, corpus)


async def test_a_new_index_is_trained_when_the_rows_have_outgrown_the_old_one(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of(min_training_size=20))
    corpus = corpus_of(600 * stage.shards_total)
    small = 60 * stage.shards_total
    await stage.put(corpus.take(slice(0, small)))
    first = await until(lambda seen: all(shard.generation == 1 for shard in seen.shards))
    await stage.put(corpus.take(slice(small, len(corpus))))
    grown = await until(lambda seen: all(shard.generation >= 2 for shard in seen.shards))
    for before, after in zip(first.shards, grown.shards, strict=True):
        assert after.nlist > before.nlist
    await until(lambda seen: not any(shard.training for shard in seen.shards))
    await assert_all_found(stage, corpus)


@pytest.mark.parametrize("rule", list(NlistRule))
async def test_lists_are_as_many_as_the_rule_says_for_the_rows_of_each_shard(
    stage: Stage, rule: NlistRule
) -> None:
    config = config_of()
    index = replace(config.index, nlist_rule=rule, nlist=3 if rule is NlistRule.FIXED else 0)
    await stage.create(replace(config, index=index))
    await stage.put(corpus_of(800))
    await stage.train()
    for shard in (await stage.describe()).shards:
        assert shard.nlist == nlist_for(index, shard.ledger.live)


async def test_a_trained_index_is_there_again_after_a_restart(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(400)
    await stage.put(corpus)
    await stage.train()
    before = (await stage.describe()).shards
    queries = some_vectors(8, seed=2)
    answer = await stage.search(queries, nprobe=1)
    await stage.reopen()
    after = (await stage.describe()).shards
    for old, new in zip(before, after, strict=True):
        assert (new.state, new.generation) == (ShardState.TRAINED, old.generation)
        assert (new.nlist, new.nprobe) == (old.nlist, old.nprobe)
        assert new.ledger == old.ledger
        assert new.rows_trained_on == old.rows_trained_on
    assert ids_found(await stage.search(queries, nprobe=1)) == ids_found(answer)
    await stage.put(corpus_of(400, seed=1))
    await stage.train()
    # All rows were replaced, so one more training may have started on its own.
    assert {shard.generation for shard in (await stage.describe()).shards} <= {2, 3}


async def test_rows_of_one_id_are_one_row_through_trainings_and_restarts(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(100))
    vectors = some_vectors(6, seed=3) * 9
    for turn in range(6):
        await stage.upsert(int64s(7), vectors[turn : turn + 1])
        if turn % 3 == 1:
            await stage.train()
        if turn % 3 == 2:
            await stage.reopen()
        result = await stage.search(vectors[: turn + 1], 1, exact=True)
        assert ids_found(result)[turn] == [7]
        assert result.hits.scores[turn] == 0
        assert (result.hits.scores[:turn] > 0).all()
