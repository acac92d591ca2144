"""What the right answer is: brute force in float64, and how near an answer has to come to it.

It stands in for no shard: it computes answers from rows, and knows no calls and no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tests.shard.samples import Corpus
from vectorshard.shard.config import Limits
from vectorshard.shard.types import Float32Array, IdArray, Metric, SearchResult, VectorArray
from vectorshard.shard.wire.metadata import metadata_from_mapping

RELATIVE_ERROR = 1e-6

EVERY_LIST = Limits().nlist
"""An nprobe that is at least the number of lists of any index."""


def metadata_of(number: int) -> bytes:
    """Return metadata of another length for each number, as it is kept; none for 0."""
    return metadata_from_mapping({"text": "x" * number} if number else {})


def scores_of(
    metric: Metric, queries: VectorArray, vectors: VectorArray
) -> npt.NDArray[np.float64]:
    """Return all scores, float64 (queries, rows)."""
    left, right = queries.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.L2:
        differences = left[:, None, :] - right[None, :, :]
        return np.asarray((differences * differences).sum(axis=2))
    if metric is Metric.COSINE:
        left = left / np.linalg.norm(left, axis=1)[:, None]
        right = right / np.linalg.norm(right, axis=1)[:, None]
    return np.asarray(left @ right.T)


def best_of(
    metric: Metric, queries: VectorArray, corpus: Corpus, k: int
) -> list[list[tuple[int | str, float]]]:
    """Return the k best (id, score) of each query, best first, ties by id."""
    sign = 1 if metric.smaller_is_better else -1
    ids = corpus.ids.tolist()
    return [
        sorted(zip(ids, row, strict=True), key=lambda hit: (sign * hit[1], hit[0]))[:k]
        for row in scores_of(metric, queries, corpus.vectors).tolist()
    ]


def hits_of(result: SearchResult) -> list[tuple[IdArray, Float32Array]]:
    """Return the (ids, scores) of each query."""
    ends = np.cumsum(result.hits.counts, dtype=np.int64)
    begins = ends - result.hits.counts
    return [
        (result.hits.ids[begin:end], result.hits.scores[begin:end])
        for begin, end in zip(begins, ends, strict=True)
    ]


def ids_found(result: SearchResult) -> list[list[int | str]]:
    """Return the ids of each query's hits."""
    return [ids.tolist() for ids, _ in hits_of(result)]


def assert_exact(
    result: SearchResult, metric: Metric, queries: VectorArray, corpus: Corpus, k: int
) -> None:
    """Assert that an answer is what brute force finds: ids, order, and scores."""
    expected = best_of(metric, queries, corpus, k)
    assert ids_found(result) == [[id_ for id_, _ in hits] for hits in expected]
    np.testing.assert_allclose(
        result.hits.scores,
        [score for hits in expected for _, score in hits],
        rtol=RELATIVE_ERROR,
        atol=RELATIVE_ERROR if metric is Metric.COSINE else 0,  # relative to the norms, which are 1
    )
    assert result.hits.scores.dtype == np.float32


def assert_scores_are_exact(
    result: SearchResult, metric: Metric, queries: VectorArray, corpus: Corpus
) -> None:
    """Assert that every hit, whichever was found, has its true score, best first."""
    row_of = {id_: row for row, id_ in enumerate(corpus.ids.tolist())}
    scores = scores_of(metric, queries, corpus.vectors)
    sign = 1 if metric.smaller_is_better else -1
    for query, (ids, found) in enumerate(hits_of(result)):
        true_scores = scores[query, [row_of[id_] for id_ in ids.tolist()]]
        np.testing.assert_allclose(found, true_scores, rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR)
        assert (np.diff(sign * found) >= 0).all()


def recall_of(result: SearchResult, expected: Sequence[Sequence[tuple[int | str, float]]]) -> float:
    """Return the mean share of the expected ids that were found."""
    shares = [
        len(set(found) & {id_ for id_, _ in hits}) / len(hits)
        for found, hits in zip(ids_found(result), expected, strict=True)
    ]
    return float(np.mean(shares))
