"""How much work a search is, before it runs: learned from the receipts of earlier searches. Pure.

Searches differ a thousandfold: one query that probes a few lists, or a thousand that score every
row. Work is measured in microseconds of one core, roughly. Only its proportions matter, because
the search limiter measures how much of it a server does per second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from vectorshard.shard.types import Receipt, SearchRequest

SEARCH_WORK: Final = 500.0
"""Of a search, besides its queries: the call, its messages, its hand-over to a thread."""

QUERY_WORK: Final = 50.0
"""Of a query, besides its scan: its part of the messages, and of the merge."""

_ROW_DIMS: Final = 60
_SCANNED_WORK: Final = 2.2e-5
"""A scanned row costs as much as that many components more than it has; work of a component. Fitted
to exact products of 64 queries on GloVe, clustered and normal rows, dim 8 to 1,536, 200 to 50,000
rows."""

_CODE_SHARE: Final = 0.25
"""A row in a list that is probed has a code, which costs as much as this part of its components."""

_CANDIDATE_DIMS: Final = 300
_CANDIDATE_WORK: Final = 3e-4
"""The same for a candidate that is scored from its row. Codes and candidates are fitted to searches
of 16 queries for 10 hits among 10,000 rows, d = 8, 100 and 768, and of GloVe."""

_KINDS_MAX: Final = 256
"""Kinds of searches that are remembered, a few hundred bytes each."""

_TYPICAL_SHARE: Final = 0.1
"""Share of the newest search in the mean work of a query, which unknown kinds are expected to
take. Larger: it follows the newest search faster, and is noisier."""


def scan_work(receipt: Receipt, dim: int, queries: int = 1) -> float:
    """Return the mean work of a query's scan on all shards, from the receipt of its search.

    `queries` is their number: some may have been scored exactly, and others by the index.
    """
    work = 0.0
    for shard in receipt.shards:
        rows, codes, candidates = float(shard.rows_exact), 0.0, float(shard.candidates)
        if shard.nlist:
            exact = min(1.0, shard.queries_exact / max(1, queries))
            passing = shard.rows_visible if shard.filter_plan is None else shard.rows_passing
            probed = min(1.0, (shard.nprobe_mean or shard.nprobe) / shard.nlist)
            rows += exact * max(0, passing - shard.rows_exact)
            codes = (1 - exact) * max(0, shard.rows_visible - shard.rows_exact) * probed
            candidates *= 1 - exact
        work += rows * (dim + _ROW_DIMS) * _SCANNED_WORK
        work += codes * (_CODE_SHARE * dim + _ROW_DIMS) * _SCANNED_WORK
        work += candidates * (dim + _CANDIDATE_DIMS) * _CANDIDATE_WORK
    return work


class ExpectedWork:
    """Remembers the work of a query for each kind of search: collection, effort, k, and filtered.

    A kind is expected to take what it took last. Data changes slowly compared with searches, and a
    search that falls back to an exact scan once is followed by others that do.
    """

    def __init__(self) -> None:
        self._query_work: OrderedDict[Hashable, float] = OrderedDict()
        self._last: tuple[Receipt | None, tuple[int, ...], float] = None, (), 0.0
        self._typical = QUERY_WORK

    @property
    def typical(self) -> float:
        """The expected work of a search that has not been read: one query of unknown kind."""
        return SEARCH_WORK + self._typical

    def of(self, request: SearchRequest) -> float:
        """Return the expected work of a search."""
        query_work = self._query_work.get(_kind_of(request), self._typical)
        return SEARCH_WORK + len(request.queries) * query_work

    def learn(self, request: SearchRequest, receipt: Receipt) -> float:
        """Return the work of an answered search, and expect the same from the next of its kind."""
        queries = len(request.queries)
        last, shape, query_work = self._last
        if receipt is not last or shape != request.queries.shape:
            query_work = QUERY_WORK + scan_work(receipt, request.queries.shape[1], queries)
            self._last = receipt, request.queries.shape, query_work
        kind = _kind_of(request)
        self._query_work[kind] = query_work
        self._query_work.move_to_end(kind)
        if len(self._query_work) > _KINDS_MAX:
            self._query_work.popitem(last=False)
        self._typical += _TYPICAL_SHARE * (query_work - self._typical)
        return SEARCH_WORK + queries * query_work


def _kind_of(request: SearchRequest) -> Hashable:
    """Return what searches have in common that scan about as much; k within a factor of two."""
    effort, k_bits, filtered = request.effort, request.k.bit_length(), request.filter is not None
    # Flat: a hash of the effort itself would take longer than that of all these.
    return request.collection, effort.nprobe, effort.target_recall, effort.exact, k_bits, filtered
