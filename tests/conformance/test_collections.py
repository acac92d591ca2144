"""Creating, dropping, listing and describing collections, and who one is talking to."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.conformance.conftest import Until
from tests.conformance.reference import EVERY_LIST, assert_exact, ids_found
from tests.shard.samples import config_of, corpus_of, int64s, some_vectors
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.errors import CollectionExists, CollectionNotFound, IncarnationMismatch
from vectorshard.shard.types import (
    Call,
    CountRequest,
    DeleteRequest,
    FieldType,
    FilterField,
    GetRequest,
    IdType,
    ListRequest,
    Metric,
    SearchRequest,
    ShardState,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
)


async def test_the_topology_names_every_leaf_shard_and_gives_each_slot_one_owner(
    stage: Stage,
) -> None:
    topology = await stage.shard.topology()
    assert [placed.shard for placed in topology.shards] == list(range(stage.shards_total))
    owners = np.zeros(SLOTS_TOTAL, dtype=int)
    for placed in topology.shards:
        for first, last in placed.slots:
            owners[first : last + 1] += 1
    assert (owners == 1).all()
    assert topology.cluster == "cluster"


async def test_creating_the_same_again_is_ok_and_says_that_it_is_not_new(stage: Stage) -> None:
    config = replace(config_of(), filter_fields=(FilterField("language", FieldType.KEYWORD),))
    first, first_new = await stage.shard.create_collection(config)
    second, second_new = await stage.shard.create_collection(config)
    assert (first_new, second_new) == (True, False)
    assert first == second
    assert first.config == config
    assert first.incarnation


async def test_all_who_create_a_collection_at_once_get_the_same_one(stage: Stage) -> None:
    created = await asyncio.gather(*(stage.shard.create_collection(config_of()) for _ in range(5)))
    assert len({entry.incarnation for entry, _ in created}) == 1
    await stage.put(corpus_of(50))
    assert (await stage.describe()).ledger.accepted == 50


async def test_creating_under_a_given_incarnation_uses_it(stage: Stage) -> None:
    entry, _ = await stage.shard.create_collection(config_of(), call=Call(incarnation="first"))
    assert entry.incarnation == "first"
    with pytest.raises(IncarnationMismatch):
        await stage.shard.create_collection(config_of(), call=Call(incarnation="second"))


async def test_a_name_that_is_taken_by_another_configuration_is_refused(stage: Stage) -> None:
    await stage.create(config_of())
    for other in (
        config_of(dim=9),
        config_of(metric=Metric.COSINE),
        config_of(id_type=IdType.STRING),
        config_of(min_training_size=5),
        config_of(target_recall=0.9),
    ):
        with pytest.raises(CollectionExists, match="words"):
            await stage.shard.create_collection(other)
    assert (await stage.describe()).config == config_of()


async def test_collections_are_listed_by_name_with_what_they_are(stage: Stage) -> None:
    assert list(await stage.shard.list_collections()) == []
    configs = [config_of(name, dim=dim) for name, dim in (("b", 2), ("a", 3), ("a-c", 4))]
    for config in configs:
        await stage.create(config)
    listed = await stage.shard.list_collections()
    assert [entry.config for entry in listed] == [configs[1], configs[2], configs[0]]
    assert len({entry.incarnation for entry in listed}) == 3


async def test_collections_do_not_see_each_others_rows(stage: Stage) -> None:
    corpus = corpus_of(40)
    await stage.create(config_of("first"))
    await stage.put(corpus)
    await stage.create(config_of("second"))
    assert await stage.shard.count(CountRequest(collection="second")) == 0
    assert ids_found(await stage.search(corpus.vectors[:2])) == [[], []]
    assert await stage.shard.count(CountRequest(collection="first")) == 40


async def test_a_dropped_collection_is_not_found_by_anything(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(20))
    name, ids, vectors = "words", int64s(1), some_vectors(1)
    await stage.shard.drop_collection(name)
    shard = stage.shard
    for call in (
        shard.drop_collection(name),
        shard.describe(name),
        shard.upsert(UpsertRequest(collection=name, ids=ids, vectors=vectors)),
        shard.delete(DeleteRequest(collection=name, ids=ids)),
        shard.get(GetRequest(collection=name, ids=ids)),
        shard.count(CountRequest(collection=name)),
        shard.list_rows(ListRequest(collection=name)),
        shard.search(SearchRequest(collection=name, queries=vectors, k=1)),
        shard.train(TrainRequest(collection=name)),
    ):
        with pytest.raises(CollectionNotFound, match="words"):
            await call
    assert list(await shard.list_collections()) == []


async def test_a_dropped_collection_stays_dropped_after_a_restart(stage: Stage) -> None:
    await stage.create(config_of("kept"))
    await stage.create(config_of("dropped"))
    await stage.shard.drop_collection("dropped")
    await stage.reopen()
    assert [entry.config.name for entry in await stage.shard.list_collections()] == ["kept"]


async def test_a_name_can_be_used_for_something_else_after_a_drop(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(30))
    await stage.search(some_vectors(2))
    before = await stage.describe()
    await stage.shard.drop_collection("words")
    await stage.create(config_of(dim=3, metric=Metric.INNER_PRODUCT, id_type=IdType.STRING))
    after = await stage.describe()
    assert after.incarnation != before.incarnation
    assert after.ledger.accepted == 0
    corpus = corpus_of(30, dim=3, id_type=IdType.STRING)
    await stage.put(corpus)
    queries = some_vectors(4, dim=3, seed=1)
    result = await stage.search(queries, exact=True)
    assert_exact(result, Metric.INNER_PRODUCT, queries, corpus, 10)


async def test_a_collection_made_anew_with_another_metric_gives_no_stale_answer(
    stage: Stage,
) -> None:
    corpus, queries = corpus_of(200), some_vectors(8, seed=3)
    for metric in (Metric.L2, Metric.INNER_PRODUCT, Metric.COSINE, Metric.L2):
        await stage.create(config_of(metric=metric))
        await stage.put(corpus)
        await stage.train()
        for result in (
            await stage.search(queries, exact=True),
            await stage.search(queries, nprobe=EVERY_LIST),
        ):
            assert_exact(result, metric, queries, corpus, 10)
        await stage.shard.drop_collection("words")


async def test_a_call_that_means_another_incarnation_is_refused(stage: Stage) -> None:
    await stage.create(config_of())
    old = (await stage.describe()).incarnation
    await stage.put(corpus_of(10))
    await stage.shard.drop_collection("words")
    await stage.create(config_of())
    await stage.put(corpus_of(10))
    new = (await stage.describe()).incarnation
    shard, call = stage.shard, Call(incarnation=old)
    name, ids, vectors = "words", int64s(1), some_vectors(1)
    for stale in (
        shard.create_collection(config_of(), call=call),
        shard.drop_collection(name, call=call),
        shard.describe(name, call=call),
        shard.upsert(UpsertRequest(collection=name, ids=ids, vectors=vectors), call=call),
        shard.delete(DeleteRequest(collection=name, ids=ids), call=call),
        shard.get(GetRequest(collection=name, ids=ids), call=call),
        shard.count(CountRequest(collection=name), call=call),
        shard.list_rows(ListRequest(collection=name), call=call),
        shard.search(SearchRequest(collection=name, queries=vectors, k=1), call=call),
        shard.train(TrainRequest(collection=name), call=call),
    ):
        assert await shard.count(CountRequest(collection=name), call=Call(incarnation=new)) == 10
        with pytest.raises(IncarnationMismatch):
            await stale
    assert await shard.count(CountRequest(collection=name)) == 10


async def test_a_description_follows_the_rows_from_buffering_to_trained(stage: Stage) -> None:
    await stage.create(config_of())
    empty = await stage.describe()
    assert empty.config == config_of()
    assert [shard.shard for shard in empty.shards] == list(range(stage.shards_total))
    assert empty.recommended_batch_size >= 1
    for shard in empty.shards:
        assert (shard.state, shard.training, shard.nlist) == (ShardState.BUFFERING, False, 0)
    corpus = corpus_of(500)
    await stage.put(corpus)
    buffering = await stage.describe()
    assert buffering.ledger.buffered == buffering.ledger.accepted == 500
    await stage.train()
    trained = await stage.describe()
    assert trained.ledger.indexed == 500
    assert trained.ledger.buffered == 0
    for shard in trained.shards:
        assert (shard.state, shard.training, shard.generation) == (ShardState.TRAINED, False, 1)
        assert 1 <= shard.nprobe <= shard.nlist
        assert shard.measured_recall >= 0.95
        assert shard.rows_trained_on == shard.ledger.indexed
        assert shard.list_imbalance >= 1
        assert shard.last_trained_at > 1_600_000_000
        assert shard.last_training_s > 0
        assert min(shard.memory_bytes, shard.disk_bytes) >= shard.ledger.accepted * 8 * 4


async def test_a_first_training_shows_as_training_and_a_retraining_as_trained(
    stage: Stage, until: Until
) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(200))
    for state in (ShardState.TRAINING, ShardState.TRAINED):
        stage.gate.end.clear()
        await stage.shard.train(TrainRequest(collection="words"))
        description = await until(lambda seen: all(shard.training for shard in seen.shards))
        assert {shard.state for shard in description.shards} == {state}
        stage.gate.open()
        await until(lambda seen: not any(shard.training for shard in seen.shards))
    assert {shard.generation for shard in (await stage.describe()).shards} == {2}


async def test_the_ledger_counts_what_became_of_every_accepted_row(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(300)
    await stage.put(corpus)
    await stage.upsert(corpus.ids[:50], corpus.vectors[:50] + 1)
    await stage.delete(corpus.ids[40:100])
    ledger = (await stage.describe()).ledger
    assert (ledger.accepted, ledger.replaced, ledger.deleted) == (350, 50, 60)
    assert (ledger.buffered, ledger.indexed, ledger.live) == (240, 0, 240)
    await stage.train()
    ledger = (await stage.describe()).ledger
    assert (ledger.buffered, ledger.indexed) == (0, 240)
    await stage.delete(corpus.ids[100:110])
    await stage.upsert(corpus.ids[110:115], corpus.vectors[110:115] + 1)
    ledger = (await stage.describe()).ledger
    assert (ledger.accepted, ledger.replaced, ledger.deleted) == (355, 55, 70)
    assert (ledger.buffered, ledger.indexed) == (5, 225)
    await stage.reopen()
    assert (await stage.describe()).ledger.live == 230
    assert (await stage.describe()).ledger.accepted == 355


async def test_an_update_changes_what_searches_aim_for_at_once_and_for_ever(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(600)
    await stage.put(corpus)
    await stage.train()
    entry = (await stage.shard.list_collections())[0]
    queries = some_vectors(5, seed=1)
    default = await stage.search(queries)
    lower = await stage.search(queries, target_recall=0.5)
    request = UpdateRequest(collection="words", target_recall=0.5)
    updated = await stage.shard.update_collection(request)
    expected = config_of(target_recall=0.5)
    assert (updated.config, updated.incarnation) == (expected, entry.incarnation)
    for reopened in (False, True):
        if reopened:
            await stage.reopen()
        assert list(await stage.shard.list_collections()) == [updated]
        assert (await stage.describe()).config == expected
        result = await stage.search(queries)
        for shard, aimed in zip(result.receipt.shards, lower.receipt.shards, strict=True):
            assert (shard.nprobe, shard.candidates) == (aimed.nprobe, aimed.candidates)
            assert shard.generation == aimed.generation  # it was not trained again
    assert lower.receipt != default.receipt
    assert (await stage.shard.create_collection(expected)) == (updated, False)
    with pytest.raises(CollectionExists, match=r"target_recall 0\.5, not 0\.95"):
        await stage.shard.create_collection(config_of())


async def test_an_update_is_for_the_collection_that_is_meant(stage: Stage) -> None:
    request = UpdateRequest(collection="words", target_recall=0.8)
    with pytest.raises(CollectionNotFound):
        await stage.shard.update_collection(request)
    await stage.create(config_of())
    with pytest.raises(IncarnationMismatch):
        await stage.shard.update_collection(request, call=Call(incarnation="another"))
    assert (await stage.describe()).config == config_of()
