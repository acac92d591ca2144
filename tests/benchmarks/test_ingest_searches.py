"""Searches beside a bulk load: their p99 against the quiet one of the same run."""

from __future__ import annotations

from benchmarks.growing import Run
from benchmarks.ingest import LOADING, QUIET, rows_of_searches


def run(p99_ms: float) -> Run:
    """Return the searches of a phase."""
    return Run(calls=100, took_s=1.0, p50_ms=1.0, p99_ms=p99_ms)


def test_searches_beside_a_load_are_held_against_the_quiet_ones_of_their_round() -> None:
    quiet = [run(2.0), run(4.0), run(10.0)]
    _, loading = rows_of_searches({QUIET: quiet, LOADING: [run(4.0), run(8.0), run(50.0)]})
    assert (loading[1], loading[-1]) == ("<= 3, met", 2.0)
    _, loading = rows_of_searches({QUIET: quiet, LOADING: [run(8.0), run(16.0), run(10.0)]})
    assert (loading[1], loading[-1]) == ("<= 3, missed", 4.0)
