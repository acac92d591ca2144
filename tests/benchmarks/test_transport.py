"""The comparison with h2load: what its rows say, with it and without."""

from __future__ import annotations

import pytest

from benchmarks.transport import NOT_INSTALLED, OURS, THEIRS, Load, rows_of


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
