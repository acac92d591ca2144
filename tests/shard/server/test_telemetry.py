"""What can be watched: ledgers as they are when somebody looks, and how calls ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest

from tests.crash_disk import FailingDisk
from tests.shard.samples import DEADLINE_S, SMALL_ENGINE, config_of, corpus_of, open_shard
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import WritesStopped
from vectorshard.shard.server.telemetry import LedgerCollector, ProblemsCollector, RpcMetrics
from vectorshard.shard.types import (
    DeleteRequest,
    ExactReason,
    IndexKind,
    Receipt,
    SearchRequest,
    ShardReceipt,
    TrainRequest,
    UpsertRequest,
)


@pytest_asyncio.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    shard = open_shard(tmp_path)
    yield shard
    await shard.close()


async def test_the_ledger_of_every_collection_is_exported_as_it_is_now(shard: LocalShard) -> None:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(shard, asyncio.get_running_loop()))

    async def rows(collection: str) -> dict[str, float | None]:
        """Look from another thread, as an HTTP server would, and return the ledger's entries."""
        await asyncio.to_thread(generate_latest, registry)
        samples = {
            sample.labels["entry"]: sample.value
            for metric in await asyncio.to_thread(lambda: list(registry.collect()))
            for sample in metric.samples
            if metric.name == "vectorshard_rows" and sample.labels["collection"] == collection
        }
        return dict(samples)

    assert await rows("words") == {}
    await shard.create_collection(config_of())
    await shard.create_collection(config_of("empty"))
    corpus = corpus_of(100)
    request = UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors)
    await shard.upsert(request)
    await shard.train(TrainRequest(collection="words", wait=True))
    await shard.delete(DeleteRequest(collection="words", ids=corpus.ids[:30]))
    assert await rows("words") == {
        "accepted": 100,
        "buffered": 0,
        "indexed": 70,
        "deleted": 30,
        "replaced": 0,
        "lost": 0,
    }
    assert set((await rows("empty")).values()) == {0}


async def test_training_and_recall_are_exported_for_each_shard(shard: LocalShard) -> None:
    await shard.create_collection(config_of())
    collector = LedgerCollector(shard, asyncio.get_running_loop())
    metrics = await asyncio.to_thread(lambda: list(collector.collect()))
    values = {
        metric.name: [(sample.labels, sample.value) for sample in metric.samples]
        for metric in metrics
    }
    labels = {"collection": "words", "shard": "0"}
    assert values["vectorshard_training"] == [(labels, 0.0)]
    assert values["vectorshard_measured_recall"] == [(labels, 1.0)]
    assert values["vectorshard_live_queries"] == [(labels, 0.0)]
    assert values["vectorshard_live_recall"] == []
    assert values["vectorshard_index_kind"] == []
    assert values["vectorshard_drift"] == [(labels, 0.0)]
    assert values["vectorshard_scrub_passes"] == [(labels, 0.0)]
    assert values["vectorshard_scrub_last_pass_timestamp_seconds"] == []


async def test_what_the_scrub_has_done_is_exported(shard: LocalShard) -> None:
    await shard.create_collection(config_of())
    corpus = corpus_of(100)
    await shard.upsert(UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors))
    collection = shard._collections.served["words"].collection
    collection.state.columns._squared_norms[5] *= 2
    collection.scrub.run_pass()
    collector = LedgerCollector(shard, asyncio.get_running_loop())
    metrics = await asyncio.to_thread(lambda: list(collector.collect()))
    values = {sample.name: sample.value for metric in metrics for sample in metric.samples}
    assert values["vectorshard_scrub_rows_total"] == 100
    assert values["vectorshard_scrub_passes_total"] == 1
    assert values["vectorshard_scrub_findings_total"] == 1
    assert values["vectorshard_scrub_last_pass_timestamp_seconds"] > 1_700_000_000


async def test_the_kind_that_serves_is_exported_beside_the_configured_one(
    tmp_path: Path,
) -> None:
    training = replace(SMALL_ENGINE.training, pq_rows_min=1_000)
    shard = open_shard(tmp_path, engine=replace(SMALL_ENGINE, training=training))
    await shard.create_collection(config_of(kind=IndexKind.IVF_PQ))
    corpus = corpus_of(100)
    await shard.upsert(UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors))
    await shard.train(TrainRequest(collection="words", wait=True))
    collector = LedgerCollector(shard, asyncio.get_running_loop())
    metrics = await asyncio.to_thread(lambda: list(collector.collect()))
    (sample,) = next(each for each in metrics if each.name == "vectorshard_index_kind").samples
    await shard.close()
    assert sample.value == 1.0
    assert sample.labels == {
        "collection": "words",
        "shard": "0",
        "kind": "IVF_FLAT",
        "configured": "IVF_PQ",
    }


async def test_problems_are_exported_and_a_collection_that_is_set_aside_has_no_rows(
    tmp_path: Path,
) -> None:
    disk, corpus = FailingDisk(), corpus_of(3)
    shard = open_shard(tmp_path)
    upserts = {}
    for name in ("harmed", "stopped"):
        await shard.create_collection(config_of(name))
        upserts[name] = UpsertRequest(collection=name, ids=corpus.ids, vectors=corpus.vectors)
    await shard.upsert(upserts["harmed"])
    await shard.close()
    (row_file,) = (tmp_path / "collections" / "harmed").glob("rows-*")
    row_file.unlink()
    shard = open_shard(tmp_path, disk=disk)
    disk.fail("sync")
    with pytest.raises(WritesStopped):
        await shard.upsert(upserts["stopped"])
    loop = asyncio.get_running_loop()
    collectors = ProblemsCollector(shard, loop), LedgerCollector(shard, loop)
    samples = {
        metric.name: metric.samples
        for each in collectors
        for metric in await asyncio.to_thread(each.collect)
    }
    problems = [(sample.labels, sample.value) for sample in samples["vectorshard_problems"]]
    assert problems == [
        ({"kind": "damaged", "shard": "0", "collection": "harmed"}, 1.0),
        ({"kind": "writes_stopped", "shard": "0", "collection": "stopped"}, 1.0),
    ]
    assert {sample.labels["collection"] for sample in samples["vectorshard_rows"]} == {"stopped"}
    await shard.close()


async def test_live_recall_is_exported_once_it_is_measured(shard: LocalShard) -> None:
    await shard.create_collection(config_of())
    corpus = corpus_of(200)
    await shard.upsert(UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors))
    await shard.train(TrainRequest(collection="words", wait=True))
    for first in range(0, 120, 8):  # one request gives no more queries to the sample
        some = corpus.vectors[first : first + 8]
        await shard.search(SearchRequest(collection="words", queries=some, k=10))
    collector = LedgerCollector(shard, asyncio.get_running_loop())

    async def look() -> dict[str, list[float]]:
        metrics = await asyncio.to_thread(lambda: list(collector.collect()))
        return {metric.name: [sample.value for sample in metric.samples] for metric in metrics}

    async with asyncio.timeout(DEADLINE_S):
        while not (values := await look())["vectorshard_live_recall"]:
            pass
    assert 100.0 <= values["vectorshard_live_queries"][0] <= 120.0
    assert 0.8 < values["vectorshard_live_recall"][0] <= 1.0


def test_registering_the_ledgers_asks_nobody_yet(shard: LocalShard) -> None:
    stopped = asyncio.new_event_loop()
    CollectorRegistry().register(LedgerCollector(shard, stopped))
    stopped.close()


def test_searches_are_counted_that_were_widened_or_exact() -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    usual = ShardReceipt(shard=0)
    few = ShardReceipt(shard=1, exact_reason=ExactReason.FEW_ROWS, queries_exact=3)
    wide = ShardReceipt(shard=2, queries_widened=2)
    for shards in ((usual,), (usual, few, few), (few, wide)):
        metrics.searched(Receipt(shards=shards, coverage=1.0))

    def exact(reason: str) -> float | None:
        return registry.get_sample_value("vectorshard_searches_exact_total", {"reason": reason})

    assert registry.get_sample_value("vectorshard_searches_widened_total") == 1
    assert (exact("few_rows"), exact("short")) == (2, 0)


def calls(registry: CollectorRegistry, method: str, code: str) -> float | None:
    return registry.get_sample_value("vectorshard_calls_total", {"method": method, "code": code})


def test_calls_are_counted_by_method_and_code_and_timed() -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    with metrics.call("Search"):
        pass
    with metrics.call("Search") as outcome:
        outcome.code = grpc.StatusCode.NOT_FOUND
    with metrics.call("Get"):
        pass
    assert calls(registry, "Search", "OK") == 1
    assert calls(registry, "Search", "NOT_FOUND") == 1
    assert calls(registry, "Get", "OK") == 1
    timed = registry.get_sample_value("vectorshard_call_seconds_count", {"method": "Search"})
    assert timed == 2


def test_the_time_of_a_call_counts_in_every_bucket_from_its_own_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    for took_s in (0.001, 0.003, 7.0):  # the first is on a bucket's edge, the last beyond all
        readings = iter((0.0, took_s))
        monkeypatch.setattr(
            "vectorshard.shard.server.telemetry.time.perf_counter", readings.__next__
        )
        with metrics.call("Search"):
            pass

    def up_to(bound: str) -> float | None:
        labels = {"method": "Search", "le": bound}
        return registry.get_sample_value("vectorshard_call_seconds_bucket", labels)

    assert [up_to(bound) for bound in ("0.0005", "0.002", "0.005", "5.0", "+Inf")] == [
        0,
        1,
        2,
        2,
        3,
    ]
    total_s = registry.get_sample_value("vectorshard_call_seconds_sum", {"method": "Search"})
    assert total_s == pytest.approx(7.004)


@pytest.mark.parametrize("end", [asyncio.CancelledError, GeneratorExit])
def test_a_call_that_is_torn_down_counts_as_cancelled(end: type[BaseException]) -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    with pytest.raises(end), metrics.call("Search"):
        raise end
    assert calls(registry, "Search", "CANCELLED") == 1
    assert calls(registry, "Search", "OK") is None
