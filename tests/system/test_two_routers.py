"""Two routers over the same shards: what one drops and creates anew, the other never mixes up."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

from tests.system.conftest import Starter, start_all, wait_until
from vectorshard.shard.errors import CollectionNotFound, IncarnationMismatch, ShardUnavailable
from vectorshard.shard.types import Float32Array, Int64Array, Metric

pytestmark = pytest.mark.system

NAME = "words"
DIM = 8
ROWS = 64
QUERIES = 4
K = 10
LIVES = 6
METRICS = (Metric.L2, Metric.INNER_PRODUCT)


def vectors_of(life: int) -> Float32Array:
    """Return the rows (ROWS, DIM) of a life of the collection: small integers, so exact scores.

    The first component is the life's number, and so tells of which life a row is.
    """
    vectors = np.random.default_rng(life).integers(-4, 5, (ROWS, DIM)).astype(np.float32)
    vectors[:, 0] = life
    return vectors


def scores_of(life: int, queries: Float32Array) -> Float32Array:
    """Return the scores (QUERIES, ROWS) by the metric that the collection has in this life."""
    vectors = vectors_of(life).astype(np.float64)
    if METRICS[life % 2] is Metric.L2:
        difference = queries[:, None, :].astype(np.float64) - vectors[None]
        distances: Float32Array = (difference**2).sum(axis=2).astype(np.float32)
        return distances
    products: Float32Array = (queries @ vectors.T).astype(np.float32)
    return products


def best_of(life: int, queries: Float32Array) -> tuple[Int64Array, Float32Array]:
    """Return ids and scores (QUERIES, K) of the best rows of a life; ties rank by id."""
    scores = scores_of(life, queries)
    costs = scores if METRICS[life % 2] is Metric.L2 else -scores
    ids = np.argsort(costs, axis=1, kind="stable")[:, :K]
    return ids, np.take_along_axis(scores, ids, axis=1)


def test_an_answer_is_of_one_life_of_a_collection_that_another_router_makes_anew(
    start_server: Starter,
) -> None:
    shards = [start_server.shard(shard, start=False) for shard in range(2)]
    start_all(shards)
    addresses = [shard.address for shard in shards]
    routers = [start_server.router(addresses, start=False) for _ in range(2)]
    start_all(routers)
    over = threading.Event()
    turn = threading.Lock()
    answers: Counter[int] = Counter()
    wrong: list[BaseException] = []

    def search() -> None:
        """Search through the second router, and hold each answer to the life that it tells of."""
        queries = np.random.default_rng(99).integers(-4, 5, (QUERIES, DIM)).astype(np.float32)
        with routers[1].client() as client:
            while not over.is_set():
                try:
                    with turn:
                        hits = client.search(NAME, queries, K, vectors=True)
                except (CollectionNotFound, IncarnationMismatch, ShardUnavailable):
                    continue
                if not len(hits.ids):  # created, and not yet written to
                    continue
                assert hits.vectors is not None
                told = set(hits.vectors[:, 0].tolist())
                assert len(told) == 1, f"rows of several lives: {told}"
                life = int(told.pop())
                np.testing.assert_array_equal(hits.vectors, vectors_of(life)[hits.ids])
                exact = scores_of(life, queries)
                query_of = np.repeat(np.arange(QUERIES), hits.counts)
                np.testing.assert_array_equal(hits.scores, exact[query_of, hits.ids])
                if sum(shard.rows_visible for shard in hits.receipt.shards) == ROWS:
                    ids, scores = best_of(life, queries)
                    np.testing.assert_array_equal(hits.ids, ids.ravel())
                    np.testing.assert_array_equal(hits.scores, scores.ravel())
                    answers[life] += 1

    def searching() -> None:
        try:
            search()
        except BaseException as error:
            wrong.append(error)

    searchers = [threading.Thread(target=searching) for _ in range(2)]
    for searcher in searchers:
        searcher.start()
    try:
        with routers[0].client() as client:
            for life in range(LIVES):
                # Whoever asks meanwhile is told that it is gone, and looks again; so at times
                # nobody does, and the second router goes by what it remembers.
                with turn if life % 3 else nullcontext():
                    if life:
                        client.drop_collection(NAME)
                    client.create_collection(NAME, dim=DIM, metric=METRICS[life % 2])
                    client.upsert(NAME, range(ROWS), vectors_of(life))
                wait_until(lambda life=life: bool(answers[life] or wrong))  # type: ignore[misc]
    finally:
        over.set()
        for searcher in searchers:
            searcher.join()
    if wrong:
        raise wrong[0]
    assert set(answers) == set(range(LIVES))
