"""Prometheus metrics of a router's downstream shards: circuit breakers and retries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vectorshard.router.remote.circuit_breaker import BreakerState
from vectorshard.router.remote.remote_shard import RemoteShard

NUMBER_BY_STATE: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class RemoteShardCollector(Collector):
    """Exports the state of each of `shards`, which are empty until the router has them.

    It only reads numbers of the event loop.
    """

    def __init__(self) -> None:
        self.shards: Sequence[RemoteShard] = ()

    def collect(self) -> Iterable[Metric]:
        """Return the current values."""
        state = GaugeMetricFamily(
            "vectorshard_child_breaker_state",
            "Circuit breaker of a downstream shard: 0 closed, 1 half-open (probe in flight), "
            "2 open.",
            labels=("child",),
        )
        openings = CounterMetricFamily(
            "vectorshard_child_breaker_openings",
            "How often the circuit breaker of a downstream shard opened.",
            labels=("child",),
        )
        retries = CounterMetricFamily(
            "vectorshard_child_retries",
            "Reads of a downstream shard that were repeated after a network failure.",
            labels=("child",),
        )
        for shard in self.shards:
            state.add_metric((shard.target,), NUMBER_BY_STATE[shard.breaker.state])
            openings.add_metric((shard.target,), shard.breaker.openings)
            retries.add_metric((shard.target,), shard.retry_policy.retries)
        return [state, openings, retries]

    def describe(self) -> Iterable[Metric]:
        """Return nothing at registration: there are no shards yet."""
        return []
