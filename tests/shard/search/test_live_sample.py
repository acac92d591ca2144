"""The sample of live queries: uniform at first, fading later, and cheap for who is not taken."""

from __future__ import annotations

import math
import threading
import tracemalloc

import numpy as np
import pytest

from vectorshard.shard.search import live_sample
from vectorshard.shard.search.live_sample import LiveSample
from vectorshard.shard.types import Float32Array

FOR_EVER = 10**9


def numbered(first: int, last: int) -> Float32Array:
    """Return queries (last - first, 1) that are their own numbers."""
    return np.arange(first, last, dtype=np.float32)[:, None]


def offered(queries: int, *, size: int, window: int, seed: int, batch: int) -> LiveSample:
    sample = LiveSample(size, window, 1, np.random.default_rng(seed))
    for first in range(0, queries, batch):
        sample.offer(numbered(first, min(first + batch, queries)))
    return sample


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_every_query_is_as_likely_to_be_in_the_sample_wherever_it_came(batch: int) -> None:
    size, queries, runs, parts = 20, 300, 400, 10
    counts = np.zeros(queries)
    for seed in range(runs):
        sample = offered(queries, size=size, window=FOR_EVER, seed=seed, batch=batch)
        numbers = sample.queries()[:, 0].astype(int)
        assert len(set(numbers.tolist())) == size
        counts[numbers] += 1
    expected = runs * size / parts
    chi_squared = float(np.sum((counts.reshape(parts, -1).sum(axis=1) - expected) ** 2) / expected)
    assert chi_squared < 27.9  # 9 degrees of freedom: one uniform sample in a thousand is above


def test_the_first_queries_are_all_kept() -> None:
    sample = offered(30, size=50, window=FOR_EVER, seed=0, batch=8)
    assert sample.queries()[:, 0].tolist() == list(range(30))
    assert (len(sample), sample.taken) == (30, 30)


def test_what_was_asked_a_window_ago_has_faded_to_a_third() -> None:
    size, window = 50, 1_000
    shares = []
    for seed in range(40):
        sample = offered(5 * window, size=size, window=window, seed=seed, batch=10)
        shares.append(np.mean(sample.queries() < 4 * window))
    assert np.mean(shares) == pytest.approx(math.exp(-1), abs=0.05)


def test_a_batch_larger_than_the_sample_is_taken_from_as_its_queries_are() -> None:
    whole = offered(500, size=10, window=FOR_EVER, seed=3, batch=500)
    one_by_one = offered(500, size=10, window=FOR_EVER, seed=3, batch=1)
    assert whole.queries().tolist() == one_by_one.queries().tolist()


def test_the_sample_says_whether_it_took_any() -> None:
    sample = LiveSample(2, FOR_EVER, 1, np.random.default_rng(0))
    assert sample.offer(numbered(0, 2))
    taken = sum(sample.offer(numbered(number, number + 1)) for number in range(2, 1_000))
    assert sample.taken == 2 + taken
    assert taken < 50


def test_an_offer_of_no_queries_takes_none() -> None:
    sample = LiveSample(2, FOR_EVER, 1, np.random.default_rng(0))
    assert not sample.offer(numbered(0, 0))
    assert sample.queries().shape == (0, 1)


def test_what_is_not_taken_costs_no_memory_and_no_chance() -> None:
    sample = offered(10_000, size=4, window=FOR_EVER, seed=0, batch=1_000)
    queries = numbered(0, 1)
    before = sample.taken
    tracemalloc.start()
    try:
        for _ in range(100):
            sample.offer(queries)
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    assert sample.taken == before
    kept = snapshot.filter_traces([tracemalloc.Filter(True, live_sample.__file__)])
    assert sum(trace.size for trace in kept.traces) <= 64  # the counter itself


def test_memory_is_taken_with_the_first_query_and_never_grows() -> None:
    sample = LiveSample(100, FOR_EVER, 8, np.random.default_rng(0))
    assert sample.memory_bytes == 0
    for _ in range(5):
        sample.offer(np.zeros((60, 8), np.float32))
    assert sample.memory_bytes == 100 * 8 * 4


def test_queries_offered_by_many_threads_are_all_counted() -> None:
    sample = LiveSample(1_000, FOR_EVER, 1, np.random.default_rng(0))

    def offer(first: int) -> None:
        for number in range(first, first + 100):
            sample.offer(numbered(number, number + 1))

    threads = [threading.Thread(target=offer, args=(100 * each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sample.queries()[:, 0].tolist()) == list(range(400))
