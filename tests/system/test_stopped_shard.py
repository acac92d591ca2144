"""A shard that is stopped (SIGSTOP): who waits for it and for how long, and how soon it is back."""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.system.conftest import Fleet, ServerProcess, Starter, wait_until
from vectorshard.client.client import Client
from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.types import Metric

pytestmark = pytest.mark.system

NAME = "rows"
DIM = 32
ROWS = 4_000
VECTORS = np.random.default_rng(5).standard_normal((ROWS, DIM), dtype=np.float32)
SEARCHERS = 4
LOOK_S = 2.0
DEADLINE_S = 1.8
"""Less than it takes until the shard is not asked any more: those who wait, wait for it."""
WRITE_S = 4.0
LATE_S = 0.1
BACK_S = 5.0
SLOWER_AT_MOST = 3.0
"""1.5 on a quiet machine; this is what cannot be noise."""


def metric_of(server: ServerProcess, name: str) -> float:
    """Return what a metric of a router's says of its last shard."""
    [port] = re.findall(r'"address": "127\.0\.0\.1:(\d+)"', server.log_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return float(re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE)[-1])


def as_documented(words: str) -> str:
    """Return a pattern of what docs/operations.md quotes with these words, for any numbers."""
    page = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
    [quoted] = [each for each in re.findall(r"`([^`\n]+)`", page.read_text()) if words in each]
    return re.sub(r"\d+", r"\\d+", re.escape(quoted).replace(re.escape("..."), ".*"))


@contextmanager
def stopped(server: ServerProcess) -> Iterator[None]:
    """Stop a process for as long as the context lasts."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


def p99_s(fleet: Fleet) -> float:
    """Return the 99th percentile of lenient searches, of which several are always in flight."""
    took_s: list[float] = []
    until = time.monotonic() + LOOK_S

    def search(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with fleet.client() as client:
            while time.monotonic() < until:
                began = time.monotonic()
                client.search(NAME, VECTORS[rng.integers(ROWS)], min_coverage=0.5)
                took_s.append(time.monotonic() - began)

    with ThreadPoolExecutor(SEARCHERS) as searchers:
        list(searchers.map(search, range(SEARCHERS)))
    return float(np.percentile(took_s, 99))


@pytest.mark.alone
def test_a_stopped_shard_is_named_in_time_done_without_and_asked_again_when_it_goes_on(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2, options=("--metrics", "127.0.0.1:0"))
    hung = fleet.shards[1]
    with fleet.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, np.arange(ROWS), VECTORS)
        quiet_s = p99_s(fleet)
        with stopped(hung), ThreadPoolExecutor(2) as callers:
            began = time.monotonic()
            strict = callers.submit(client.search, NAME, VECTORS[0], timeout_s=DEADLINE_S)
            lenient = callers.submit(
                client.search, NAME, VECTORS[0], min_coverage=0.5, timeout_s=DEADLINE_S
            )
            refusal = strict.exception()
            strict_s = time.monotonic() - began
            hits = lenient.result()
            lenient_s = time.monotonic() - began
            assert isinstance(refusal, ShardUnavailable)
            assert "shard 1: DeadlineExceeded" in str(refusal)
            assert hung.address in str(refusal)
            assert "shard 0" not in str(refusal)
            assert strict_s < DEADLINE_S + LATE_S
            assert lenient_s < DEADLINE_S
            assert hits.receipt.coverage == 0.5
            assert "DeadlineExceeded" in hits.receipt.shards[1].missing_reason

            wait_until(lambda: metric_of(fleet.router, "vectorshard_child_breaker_state") == 2)
            assert "circuit breaker opened" in fleet.router.log_text()
            without_s = p99_s(fleet)
            hits = client.search(NAME, VECTORS[0], min_coverage=0.5)
            reason = hits.receipt.shards[1].missing_reason
            assert "circuit breaker" in reason
            assert "(silent for" in reason
            assert metric_of(fleet.router, "vectorshard_child_breaker_openings_total") == 1
        began = time.monotonic()
        wait_until(lambda: covers_all(client), BACK_S)
        back_s = time.monotonic() - began
        assert "circuit breaker closed" in fleet.router.log_text()
    print(
        f"strict {strict_s:.2f} s, lenient {lenient_s:.2f} s of {DEADLINE_S:g} s; "
        f"p99 {1e3 * quiet_s:.1f} ms with all, {1e3 * without_s:.1f} ms without one "
        f"({without_s / quiet_s:.2f}); back after {back_s:.2f} s"
    )
    assert without_s < SLOWER_AT_MOST * quiet_s
    fleet.stop()


def covers_all(client: Client) -> bool:
    """Whether a strict search is answered."""
    try:
        return client.search(NAME, VECTORS[0], timeout_s=1.0).receipt.coverage == 1.0
    except ShardUnavailable:
        return False


def test_a_write_past_a_stopped_shard_is_told_row_by_row_and_repeating_it_is_harmless(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2)
    hung = fleet.shards[1]
    with fleet.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        with (
            Client(fleet.address, timeout_s=WRITE_S) as hurried,
            stopped(hung),
            pytest.raises(ShardUnavailable, match="are not written") as caught,
        ):
            hurried.upsert(NAME, np.arange(200), VECTORS[:200])
        unwritten = caught.value.unwritten_rows
        assert 50 < len(unwritten) < 150
        assert hung.address in str(caught.value)
        assert re.fullmatch(as_documented("rows are not written"), str(caught.value), re.DOTALL)

        def written_again() -> bool:
            try:
                return client.upsert(NAME, np.arange(200), VECTORS[:200]).accepted == 200
            except ShardUnavailable:
                return False

        # The stopped shard has what it was sent, and may have written it by now: the
        # acknowledgement is lost.
        wait_until(written_again, BACK_S)
        ledger = client.describe(NAME).ledger
        assert (ledger.accepted, ledger.live) == (200, 200)
    fleet.stop()
