"""What can be watched from outside: metrics of calls and ledgers, for Prometheus; and the log.

The ledgers are asked for when somebody looks, never kept here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shard.errors import CollectionNotFound
from shard.protocol import Shard
from shard.types import CollectionDescription, Ledger

LOOK_TIMEOUT_S = 10.0

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode = grpc.StatusCode.OK


class RpcMetrics:
    """Counts calls by method and code, and times them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "vectorshard_calls", "Calls answered.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "vectorshard_call_seconds",
            "Time from a call's arrival to its answer.",
            ("method",),
            registry=registry,
            buckets=_LATENCY_BUCKETS_S,
        )

    @contextmanager
    def call(self, method: str) -> Iterator[Outcome]:
        """Count and time one call; a call that is torn down counts as CANCELLED."""
        outcome = Outcome()
        started = time.perf_counter()
        try:
            yield outcome
        except (asyncio.CancelledError, GeneratorExit):
            outcome.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            self._calls.labels(method, outcome.code.name).inc()
            self._seconds.labels(method).observe(time.perf_counter() - started)


class LedgerCollector(Collector):
    """Exports the ledger and state of every collection and leaf shard.

    Parameters
    ----------
    loop
        The event loop that the shard lives on; `collect` is called from other threads.
    """

    def __init__(self, shard: Shard, loop: asyncio.AbstractEventLoop) -> None:
        self._shard = shard
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """Ask the shard and describe what it says."""
        looking = asyncio.run_coroutine_threadsafe(self._look(), self._loop)
        descriptions = looking.result(LOOK_TIMEOUT_S)
        rows = GaugeMetricFamily(
            "vectorshard_rows",
            "The ledger: accepted = buffered + indexed + deleted + replaced.",
            labels=("collection", "shard", "entry"),
        )
        training = GaugeMetricFamily(
            "vectorshard_training", "1 while an index is trained.", labels=("collection", "shard")
        )
        recall = GaugeMetricFamily(
            "vectorshard_measured_recall",
            "Recall@10 that the index reached on the shard's own rows.",
            labels=("collection", "shard"),
        )
        for description in descriptions:
            for shard in description.shards:
                labels = [description.config.name, str(shard.shard)]
                for entry in fields(Ledger):
                    rows.add_metric([*labels, entry.name], getattr(shard.ledger, entry.name))
                training.add_metric(labels, float(shard.training))
                recall.add_metric(labels, shard.measured_recall)
        return [rows, training, recall]

    def describe(self) -> Iterable[Metric]:
        """Say nothing at registration: the shard may not answer yet."""
        return []

    async def _look(self) -> list[CollectionDescription]:
        descriptions = []
        for entry in await self._shard.list_collections():
            with suppress(CollectionNotFound):  # dropped since
                descriptions.append(await self._shard.describe(entry.config.name))
        return descriptions


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> int:
    """Serve the registry over HTTP from a thread of its own, until the process ends.

    Port 0 picks one. Returns the port. Raises OSError if it cannot listen.
    """
    server, _ = start_http_server(port, host, registry)
    return server.server_port
