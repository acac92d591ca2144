"""What can be watched of a router's children from outside: breakers and retries, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vectorshard.router.remote.circuit_breaker import BreakerState
from vectorshard.router.remote.guarded_shard import GuardedShard

NUMBER_BY_STATE: Final = {
    BreakerState.CLOSED: 0,
    BreakerState.HALF_OPEN: 1,
    BreakerState.OPEN: 2,
}


class GuardCollector(Collector):
    """Exports what is known of each guarded shard. Plain numbers of the event loop's, only read.

    Attributes
    ----------
    shards
        Of whom; none until the router has them.
    """

    def __init__(self) -> None:
        self.shards: Sequence[GuardedShard] = ()

    def collect(self) -> Iterable[Metric]:
        """Describe the shards as they are."""
        state = GaugeMetricFamily(
            "vectorshard_child_breaker_state",
            "Whether a child is asked: 0 yes (closed), 1 a probe is (half-open), 2 no (open).",
            labels=("child",),
        )
        openings = CounterMetricFamily(
            "vectorshard_child_breaker_openings",
            "How often a child that was asked was asked no more.",
            labels=("child",),
        )
        retries = CounterMetricFamily(
            "vectorshard_child_retries",
            "Reads that were asked again because the network had failed them.",
            labels=("child",),
        )
        for shard in self.shards:
            state.add_metric((shard.name,), NUMBER_BY_STATE[shard.breaker.state])
            openings.add_metric((shard.name,), shard.openings)
            retries.add_metric((shard.name,), shard.retries)
        return [state, openings, retries]

    def describe(self) -> Iterable[Metric]:
        """Say nothing at registration: there are no shards yet."""
        return []
