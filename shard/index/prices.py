"""Measure what a candidate costs on this machine, relative to a list. Pure: a timer is given.

Machines differ in how fast they read rows from memory compared with codes from the cache. With its
own price, each finds the cheapest search parameters of a recall. The border between the index and
an exact scan stays that of the model: it compares whole searches, whose times scatter too much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import SearchParameters, work
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.types import Float32Array, IndexKind

PRICED_QUERIES: Final = 16  # of a search that is timed

PIECES: Final = 6
"""Groups of so many queries, each timed once in each way: their rows are in no cache yet."""

PRICED_ROWS_MIN: Final = 10_000  # fewer rows are in a cache, where the model errs little

PRICE_MAX: Final = 2.0
"""The most by which a price may differ from the model: beyond it, another program interfered."""

_QUANTILE: Final = 0.25  # of the times of the pieces: what interferes makes them longer
_K: Final = 10
_LISTS: Final = 16
_CANDIDATES: Final = 100
_MORE: Final = 4  # the ratio of the lists, and of the candidates, of two searches compared


def measured_candidate_price(
    ivf: IvfIndex, held: RowRange, queries: Float32Array, timer: Callable[[], float]
) -> float:
    """Return the `candidate_price` of `work` for an index that is not in use.

    That of the model, 1, if the index is small, or scores rows as it scans lists.

    Parameters
    ----------
    held
        The rows in the index.
    queries
        float32 (queries, dim), of which the first PIECES * PRICED_QUERIES are used.
    timer
        Returns the CPU time of this thread in seconds.
    """
    lists = min(_LISTS, ivf.nlist // _MORE)
    if len(queries) < PIECES * PRICED_QUERIES or ivf.rows < PRICED_ROWS_MIN or not lists:
        return 1.0
    if ivf.kind is IndexKind.IVF_FLAT:
        return 1.0
    few = SearchParameters(lists, _CANDIDATES)
    more_lists = SearchParameters(_MORE * lists, _CANDIDATES)
    more_candidates = SearchParameters(lists, _MORE * _CANDIDATES)
    pieces = np.ascontiguousarray(queries[: PIECES * PRICED_QUERIES])
    pieces = pieces.reshape(PIECES, PRICED_QUERIES, -1)
    _timed(ivf, held, pieces[0], more_lists, timer)  # reads what each search reads
    took = [
        [_timed(ivf, held, piece, each, timer) for each in (few, more_lists, more_candidates)]
        for piece in pieces
    ]
    of_few, of_lists, of_candidates = np.quantile(took, _QUANTILE, axis=0).tolist()
    if of_lists <= of_few or of_candidates <= of_few:
        return 1.0
    shape = ivf.rows / ivf.nlist, ivf.code_bytes, queries.shape[1]
    modelled = [work(each, *shape) for each in (few, more_lists, more_candidates)]
    a_list = (of_lists - of_few) / (modelled[1] - modelled[0])
    a_candidate = (of_candidates - of_few) / (modelled[2] - modelled[0])
    return round(float(np.clip(a_candidate / a_list, 1 / PRICE_MAX, PRICE_MAX)), 3)


def _timed(
    ivf: IvfIndex,
    held: RowRange,
    queries: Float32Array,
    parameters: SearchParameters,
    timer: Callable[[], float],
) -> float:
    """Return the time of a search, in seconds."""
    started = timer()
    rows = held.tombstones, held.vectors, held.squared_norms, held.positions
    ivf.proposed(queries, _K, parameters, *rows)
    return timer() - started
