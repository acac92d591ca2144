"""Recall: the share of the true nearest rows in the answers. Pure; computed after the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vectorshard.shard.types import Float32Array, IdArray, Metric
from vectorshard.v1 import vectorshard_pb2 as v1

BLOCK_ELEMENTS = 8_000_000
"""Scores computed at once: 32 MB."""


def recall_at_k(
    answers: Mapping[int, bytes], truth: IdArray, *, batch: int, k: int
) -> tuple[float, int]:
    """Return the mean recall@k, and the number of queries it is based on.

    Parameters
    ----------
    answers
        SearchResponse by the number of the request, of `batch` queries.
    truth
        (queries, at least k) the ids of the true nearest rows, in the order of the queries.
    """
    found = queries = 0
    for request, answer in answers.items():
        response = v1.SearchResponse.FromString(answer)
        kind = response.ids.WhichOneof("kind")
        ids = list(getattr(response.ids, kind).values) if kind else []
        first = 0
        for query, hits in enumerate(response.counts, start=request * batch):
            true = truth[query % len(truth), :k].tolist()
            found += len(set(true) & set(ids[first : first + hits]))
            first += hits
            queries += 1
    return (found / (queries * k) if queries else 0.0), queries


def nearest_rows(
    vectors: Float32Array, queries: Float32Array, k: int, metric: Metric
) -> npt.NDArray[np.int64]:
    """Return the numbers (queries, k) of the nearest of all rows: the ground truth.

    `vectors` (rows, dim), `queries` (queries, dim); k is at most the number of rows.
    """
    weights: Any = 1.0
    offsets: Any = 0.0
    if metric is Metric.L2:  # |v - q|² without |q|², which is the same for all rows
        weights, offsets = -2.0, np.einsum("rd,rd->r", vectors, vectors)
    elif metric is Metric.COSINE:
        weights = -1.0 / np.linalg.norm(vectors, axis=1)
    else:
        weights = -1.0
    nearest = np.empty((len(queries), k), np.int64)
    step = max(1, BLOCK_ELEMENTS // len(vectors))
    for first in range(0, len(queries), step):
        block = queries[first : first + step] @ vectors.T * weights + offsets
        picked = np.argpartition(block, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(block, picked, axis=1), axis=1)
        nearest[first : first + step] = np.take_along_axis(picked, order, axis=1)
    return nearest
