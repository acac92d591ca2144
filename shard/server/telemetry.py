"""Metrics of calls and ledgers, for Prometheus. Ledgers are read at each scrape, never kept."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import accumulate
from typing import Self

import grpc
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.errors import CollectionNotFound, CorruptData, ReadFailed, ShardMissing
from vectorshard.shard.membership import Problem
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import ExactReason, Ledger, Receipt

DESCRIBE_TIMEOUT_S = 10.0

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Outcome:
    """The outcome of a call, counted at its end: `code`, or CANCELLED for a cancelled call."""

    # A class, not a generator under @contextmanager: every call pays for it.
    __slots__ = ("_count", "_ended", "_method", "_started", "code")

    def __init__(
        self,
        method: str,
        count: Callable[[str, grpc.StatusCode, float], None],
        ended: Callable[[], None],
    ) -> None:
        self.code = grpc.StatusCode.OK
        self._method = method
        self._count = count
        self._ended = ended
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit):
            self.code = grpc.StatusCode.CANCELLED
        self._count(self._method, self.code, time.perf_counter() - self._started)
        self._ended()


class RpcMetrics(Collector):
    """Counts calls by method and code, and times them. Used by one thread, read by others.

    Plain numbers that become metrics at a scrape: a Counter and a Histogram of prometheus_client
    take a lock each, and 5 us of every call.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls: dict[tuple[str, grpc.StatusCode], int] = {}
        self._seconds: dict[str, float] = {}
        self._buckets: dict[str, list[int]] = {}
        self._widened = 0
        self._exact = dict.fromkeys(ExactReason, 0)
        registry.register(self)

    def call(self, method: str, ended: Callable[[], None] = lambda: None) -> Outcome:
        """Return a context that times a call from now to its end, counts it and calls `ended`."""
        return Outcome(method, self._count, ended)

    def searched(self, receipt: Receipt) -> None:
        """Count a search that was answered, if its receipt says that it was widened or exact.

        Once for each reason: shards may differ.
        """
        reasons = {shard.exact_reason for shard in receipt.shards if shard.exact_reason}
        for reason in reasons:
            self._exact[reason] += 1
        self._widened += any(shard.queries_widened for shard in receipt.shards)

    def _count(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        self._calls[method, code] = self._calls.get((method, code), 0) + 1
        if (buckets := self._buckets.get(method)) is None:
            self._seconds[method] = 0.0  # first: a scrape iterates over the methods of the buckets
            buckets = self._buckets[method] = [0] * (len(_LATENCY_BUCKETS_S) + 1)
        buckets[bisect_left(_LATENCY_BUCKETS_S, seconds)] += 1
        self._seconds[method] += seconds

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the calls until now."""
        calls = CounterMetricFamily(
            "vectorshard_calls", "Calls answered, by method and code.", labels=("method", "code")
        )
        for (method, code), number in self._calls.copy().items():
            calls.add_metric((method, code.name), number)
        took = HistogramMetricFamily(
            "vectorshard_call_seconds",
            "Time from the arrival of a call to its answer, in seconds.",
            labels=("method",),
        )
        bounds = [*map(str, _LATENCY_BUCKETS_S), "+Inf"]
        for method, buckets in self._buckets.copy().items():
            cumulated = list(zip(bounds, accumulate(buckets), strict=True))
            took.add_metric((method,), cumulated, self._seconds[method])
        widened = CounterMetricFamily(
            "vectorshard_searches_widened",
            "Searches in which a query probed more lists than calibrated, as rows were deleted.",
            value=self._widened,
        )
        exact = CounterMetricFamily(
            "vectorshard_searches_exact",
            "Searches in which a shard scored every row for a query, by ShardReceipt.exact_reason.",
            labels=("reason",),
        )
        for reason, searches in self._exact.items():
            exact.add_metric((reason.value,), searches)
        return [calls, took, widened, exact]

    def describe(self) -> Iterable[Metric]:
        """Return nothing at registration: there are no calls yet."""
        return []


class LedgerCollector(Collector):
    """Exports the ledger and state of every collection and leaf shard.

    `loop` is the shard's event loop; `collect` is called from other threads.
    """

    def __init__(self, shard: Shard, loop: asyncio.AbstractEventLoop) -> None:
        self._shard = shard
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the shard's collections as they are now."""
        describing = asyncio.run_coroutine_threadsafe(self._describe(), self._loop)
        descriptions = describing.result(DESCRIBE_TIMEOUT_S)
        rows = GaugeMetricFamily(
            "vectorshard_rows",
            "Rows of the ledger: accepted = buffered + indexed + deleted + replaced + lost.",
            labels=("collection", "shard", "entry"),
        )
        training = GaugeMetricFamily(
            "vectorshard_training",
            "1 while an index trains, else 0.",
            labels=("collection", "shard"),
        )
        recall = GaugeMetricFamily(
            "vectorshard_measured_recall",
            "Recall@10 of the index, measured at its calibration.",
            labels=("collection", "shard"),
        )
        live_recall = GaugeMetricFamily(
            "vectorshard_live_recall",
            "Recall@10 measured with live queries; absent before the first measurement.",
            labels=("collection", "shard"),
        )
        live_queries = GaugeMetricFamily(
            "vectorshard_live_queries",
            "Live queries with which the live recall was measured.",
            labels=("collection", "shard"),
        )
        kind = GaugeMetricFamily(
            "vectorshard_index_kind",
            "1 for the kind of index that serves; it may differ from the configured one.",
            labels=("collection", "shard", "kind", "configured"),
        )
        drift = GaugeMetricFamily(
            "vectorshard_drift",
            "Distance of the newest rows to their centroids, relative to that at the training.",
            labels=("collection", "shard"),
        )
        verified = [_rows_damaged(descriptions), *_scrub_metrics(descriptions)]
        for description in descriptions:
            configured = description.config.index.kind.name
            for shard in description.shards:
                if shard.missing_reason:  # zeros would look like an empty collection
                    continue
                labels = [description.config.name, str(shard.shard)]
                for entry in fields(Ledger):
                    rows.add_metric([*labels, entry.name], getattr(shard.ledger, entry.name))
                training.add_metric(labels, float(shard.training))
                recall.add_metric(labels, shard.measured_recall)
                live_queries.add_metric(labels, shard.live_queries)
                drift.add_metric(labels, shard.drift)
                if shard.index_kind is not None:
                    kind.add_metric([*labels, shard.index_kind.name, configured], 1.0)
                if shard.live_queries:
                    live_recall.add_metric(labels, shard.live_recall)
        return [rows, training, recall, live_recall, live_queries, kind, drift, *verified]

    def describe(self) -> Iterable[Metric]:
        """Return nothing at registration: the shard may not answer yet."""
        return []

    async def _describe(self) -> list[CollectionDescription]:
        descriptions = []
        for entry in await self._shard.list_collections():
            # Dropped since, or not served: then a problem says why.
            with suppress(CollectionNotFound, CorruptData, ReadFailed, ShardMissing):
                descriptions.append(await self._shard.describe(entry.config.name))
        return descriptions


def _rows_damaged(descriptions: Iterable[CollectionDescription]) -> Metric:
    """Return how many rows of the leaf shards are known to be damaged."""
    damaged = GaugeMetricFamily(
        "vectorshard_rows_damaged",
        "Live rows that do not match their content hashes; searches leave them out.",
        labels=("collection", "shard"),
    )
    for description in descriptions:
        for shard in description.shards:
            if not shard.missing_reason:
                labels = [description.config.name, str(shard.shard)]
                damaged.add_metric(labels, shard.rows_damaged)
    return damaged


def _scrub_metrics(descriptions: Iterable[CollectionDescription]) -> list[Metric]:
    """Return what the scrubs of the leaf shards have done since each was started."""
    labels = ("collection", "shard")
    rows = CounterMetricFamily(
        "vectorshard_scrub_rows", "Rows that the scrub has verified.", labels=labels
    )
    passes = CounterMetricFamily(
        "vectorshard_scrub_passes", "Scrub passes over all that is stored.", labels=labels
    )
    findings = CounterMetricFamily(
        "vectorshard_scrub_findings",
        "What the scrub has found damaged, as in DescribeCollection; alert on any.",
        labels=labels,
    )
    last = GaugeMetricFamily(
        "vectorshard_scrub_last_pass_timestamp_seconds",
        "When the last scrub pass ended, since 1970; absent before the first.",
        labels=labels,
    )
    for description in descriptions:
        for shard in description.shards:
            if shard.missing_reason or shard.scrub is None:
                continue
            values = [description.config.name, str(shard.shard)]
            rows.add_metric(values, shard.scrub.rows)
            passes.add_metric(values, shard.scrub.passes)
            findings.add_metric(values, shard.scrub.findings_total)
            if shard.scrub.passes:
                last.add_metric(values, shard.scrub.last_pass_at)
    return [rows, passes, findings, last]


class ProblemsCollector(Collector):
    """Exports what an operator must look at: of a router, also that a shard is missing.

    `loop` is the shard's event loop; `collect` is called from other threads.
    """

    def __init__(self, shard: Shard, loop: asyncio.AbstractEventLoop) -> None:
        self._shard = shard
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """Return the problems as they are now."""
        asking = asyncio.run_coroutine_threadsafe(self._problems(), self._loop)
        gauge = GaugeMetricFamily(
            "vectorshard_problems",
            "Problems that an operator must look at, as in GetServerInfo; absent without any.",
            labels=("kind", "shard", "collection"),
        )
        problems = asking.result(DESCRIBE_TIMEOUT_S)
        found = Counter((each.kind, each.shard, each.collection) for each in problems)
        for (kind, shard, collection), number in found.items():
            gauge.add_metric((kind.value, str(shard), collection), number)
        return [gauge]

    def describe(self) -> Iterable[Metric]:
        """Return nothing at registration: the shard may not answer yet."""
        return []

    async def _problems(self) -> Sequence[Problem]:
        return await self._shard.problems()


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> int:
    """Serve the registry over HTTP from a dedicated thread, until the process ends.

    Port 0 picks one. Returns the port. Raises OSError if it cannot listen.
    """
    server, _ = start_http_server(port, host, registry)
    return server.server_port
