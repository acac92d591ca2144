"""The plan of a run of the load generator. Plain values, which the command line sets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CallKind(StrEnum):
    """The RPC to call. EMPTY is GetServerInfo: the cost of a call that does nothing."""

    search = "search"
    upsert = "upsert"
    empty = "empty"


class Arrivals(StrEnum):
    """The spacing of the starts of an open loop."""

    poisson = "poisson"
    uniform = "uniform"


class Format(StrEnum):
    """The format of the result."""

    summary = "summary"
    json = "json"
    csv = "csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run. Counts are at least 1; times in seconds.

    `rate_per_s` None is the closed loop. `duration_s` and `calls_total` count after `warmup_s`; the
    first that is reached ends the run, and at least one is set.
    """

    target: str
    call: CallKind = CallKind.search
    collection: str = "bench"
    rate_per_s: float | None = 100.0
    arrivals: Arrivals = Arrivals.poisson
    concurrency: int = 1_000
    connections: int = 1
    duration_s: float | None = 10.0
    calls_total: int | None = None
    warmup_s: float = 0.0
    timeout_s: float = 10.0
    batch: int = 1
    k: int = 10
    exact: bool = False
    nprobe: int | None = None
    target_recall: float | None = None
    filter: str | None = None
    data: str = "synthetic"
    vectors_key: str = ""
    queries_key: str = ""
    neighbors_key: str = ""
    rows: int = 100_000  # of synthetic data
    ingest: bool = False
    seed: int = 7

    @property
    def effort(self) -> str:
        """The effort of a search, as on the command line."""
        if self.exact:
            return "exact"
        if self.nprobe is not None:
            return f"nprobe {self.nprobe}"
        return "default" if self.target_recall is None else f"target_recall {self.target_recall:g}"
