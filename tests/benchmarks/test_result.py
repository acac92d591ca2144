"""Figures and warnings of a result, and how it is told."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.load.output import as_csv, as_json, summary
from benchmarks.load.plan import CallKind, Plan
from benchmarks.load.record import Record
from benchmarks.load.result import Result, result_of
from benchmarks.load.schedule import Start

PLAN = Plan(target="t:1", rate_per_s=10.0, duration_s=10.0, warmup_s=2.0, batch=8)


def recorded(*latencies_s: float, lag_s: float = 0.0, failed: int = 0) -> Record:
    """Return the record of calls that were meant for 3 s."""
    record = Record(distinct=1)
    for number, latency_s in enumerate(latencies_s):
        record.note(
            Start(number, 3.0, counts=True),
            free_s=0.0,
            sent_s=3.0 + lag_s,
            ended_s=3.0 + latency_s,
            code="UNAVAILABLE" if number < failed else "OK",
            answer=None,
        )
    return record


def result(plan: Plan = PLAN, record: Record | None = None, **changes: Any) -> Result:
    """Return the result of a run of 12 s with 4 calls."""
    told = {"ran_s": 12.0, "cpu_s": 0.6, "interrupted": False, "recall": None, **changes}
    return result_of(plan, record or recorded(0.1, 0.2, 0.3, 0.4), **told)


def test_rates_are_of_the_time_in_which_calls_count() -> None:
    told = result()
    assert (told.elapsed_s, told.calls, told.rate_achieved_per_s) == (10.0, 4, 0.4)
    assert told.queries_per_s == pytest.approx(3.2)
    assert (told.rate_offered_per_s, told.rows_per_s) == (10.0, None)


def test_a_run_that_ends_with_its_calls_lasted_until_the_last_answer() -> None:
    told = result(replace(PLAN, calls_total=4))
    assert told.elapsed_s == pytest.approx(3.4 - 2.0)


def test_a_server_that_answers_late_makes_the_time_longer() -> None:
    assert result(record=recorded(17.0)).elapsed_s == pytest.approx(18.0)


def test_an_interrupted_run_lasted_until_it_was_interrupted() -> None:
    told = result(ran_s=5.0, interrupted=True)
    assert (told.interrupted, told.elapsed_s) == (True, 3.0)


def test_percentiles_are_in_milliseconds() -> None:
    told = result()
    assert told.latency_p50_ms == pytest.approx(200, rel=1e-3)
    assert told.latency_max_ms == pytest.approx(400, rel=1e-3)
    assert told.latency_mean_ms == pytest.approx(250, rel=1e-3)


def test_the_cost_of_the_generator_is_told() -> None:
    told = result()
    assert told.client_cpu_us_per_call == pytest.approx(0.6e6 / 4)
    assert told.client_cpu_cores == pytest.approx(0.05)


def test_a_run_of_upserts_counts_rows_and_an_empty_one_neither() -> None:
    upserts = result(replace(PLAN, call=CallKind.upsert))
    assert upserts.rows_per_s == pytest.approx(3.2)
    assert upserts.queries_per_s is None
    empty = result(replace(PLAN, call=CallKind.empty))
    assert (empty.rows_per_s, empty.queries_per_s, empty.collection) == (None, None, None)


def test_a_run_without_calls_has_no_latencies() -> None:
    told = result(record=Record(distinct=1))
    assert (told.calls, told.latency_p50_ms, told.rate_achieved_per_s) == (0, None, 0.0)
    assert told.client_cpu_us_per_call is None


def test_a_quiet_run_has_nothing_to_mind() -> None:
    assert result().warnings == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"record": recorded(0.1, 0.1, failed=1)}, "1 call failed"),
        ({"record": recorded(0.1, lag_s=0.05)}, "bottleneck: 1% of the calls were sent 50"),
        ({"cpu_s": 11.0}, "bottleneck: it used 0.92 of a core"),
        ({"why_no_recall": "because"}, "recall was not measured: because"),
    ],
)
def test_what_spoils_a_figure_is_said_in_words(changes: dict[str, Any], told: str) -> None:
    [warning] = result(**changes).warnings
    assert told in warning


def test_calls_that_waited_for_a_slot_are_said_in_words() -> None:
    record = Record(distinct=1)
    start = Start(0, 3.0, counts=True)
    record.note(start, free_s=4.0, sent_s=4.0, ended_s=5.0, code="OK", answer=None)
    told = result(record=record)
    assert told.waited_calls == 1
    assert told.waited_max_ms == pytest.approx(1_000, rel=1e-3)
    assert "1 call waited because 1,000 were in flight" in told.warnings[0]


def test_a_lag_that_no_latency_shows_is_no_warning() -> None:
    assert result(record=recorded(2.0, lag_s=0.002)).warnings == ()


def test_a_closed_loop_has_no_lag_and_no_rate_to_meet() -> None:
    told = result(replace(PLAN, rate_per_s=None))
    assert (told.mode, told.rate_offered_per_s, told.lag_max_ms) == ("closed", None, None)
    assert (told.arrivals, told.waited_calls) == (None, 0)


def test_json_has_every_field_by_its_name() -> None:
    told = json.loads(as_json(result(recall=(0.9, 70))))
    assert set(told) == set(Result.__dataclass_fields__)
    assert told["codes"] == {"OK": 4}
    assert (told["recall"], told["recall_queries"]) == (0.9, 70)


def test_csv_is_a_header_and_one_row() -> None:
    told = result(record=recorded(0.1, 0.1, failed=1))
    [row] = csv.DictReader(io.StringIO(as_csv(told)))
    assert set(row) == set(Result.__dataclass_fields__)
    assert row["codes"] == "UNAVAILABLE:1 OK:1"
    assert (row["mode"], row["calls"]) == ("open", "2")
    assert row["warnings"] == told.warnings[0]


def test_the_summary_shows_rate_latency_statuses_recall_and_lag() -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(summary(result(record=recorded(0.1, 0.2, failed=1), recall=(0.875, 64))))
    shown = console.export_text()
    for part in (
        "search in bench at t:1",
        "open loop, 10 calls/s offered, poisson",
        "2 in 10.00 s",
        "OK 1",
        "UNAVAILABLE 1",
        "p50 100.0",
        "p99.9 200.",
        "recall@10",
        "0.8750 over 64 queries",
        "generator's lag, ms",
    ):
        assert part in shown
