"""The comparison with h2load: what its rows say, with it and without."""

from __future__ import annotations

import pytest

from benchmarks.transport import (
    NOT_INSTALLED,
    OURS,
    SERVER,
    STOCK,
    THEIRS,
    Load,
    Pair,
    rows_of,
    rows_of_servers,
)


def loads(*rates: float) -> list[Load]:
    """Return runs of these rates, of 100 calls each."""
    return [Load(calls_per_s=rate, p50_ms=1.0, client_s=0.01, server_s=0.02) for rate in rates]


def test_the_ratio_is_that_of_runs_of_the_same_round() -> None:
    ours, theirs = rows_of("empty", {OURS: loads(1, 4, 9), THEIRS: loads(2, 4, 3)}, 100)
    assert ours[:2] == ("empty", OURS)
    assert list(ours[2:]) == pytest.approx([4, 1.0, 100, 200, 1.0, 3])
    assert theirs[6] == 1.0


def test_where_h2load_is_not_installed_the_row_says_so() -> None:
    ours, theirs = rows_of("empty", {OURS: loads(5)}, 100)
    assert (ours[2], ours[6]) == (5, "-")
    assert theirs[1] == NOT_INSTALLED
    assert len(theirs) == len(ours)


def test_a_server_is_compared_with_the_stock_one_of_the_same_round() -> None:
    pairs = {
        STOCK: [
            Pair(many, alone) for many, alone in zip(loads(1, 2, 3), loads(9, 9, 9), strict=True)
        ],
        SERVER: [
            Pair(many, alone) for many, alone in zip(loads(2, 2, 9), loads(9, 9, 9), strict=True)
        ],
    }
    stock, ours = rows_of_servers(pairs, 100)
    assert list(stock) == [STOCK, 2, 1.0, pytest.approx(200), 1.0, 1.0, "-", 3]
    assert list(ours) == [SERVER, 2, 1.0, pytest.approx(200), 2.0, 1.0, "rate >= 1.3", 3]
