"""The fan-out's baseline: what its rows say, and what a run is made of."""

from __future__ import annotations

import json

import pytest

from benchmarks.fanout import (
    BATCHES,
    EMBEDDED,
    EMPTY_ALONE,
    FLEET,
    LOADS,
    SINGLE_ALONE,
    SINGLES,
    Calls,
    Run,
    rows_of,
    run_of,
)


def run(queries_per_s: float, p50_ms: float = 1.0, **cpu_us: float) -> Run:
    """Return a run; the CPU of its processes by their names, a blank an underline."""
    named = {name.replace("_", " "): figure for name, figure in cpu_us.items()}
    return Run(queries_per_s=queries_per_s, p50_ms=p50_ms, p99_ms=9.0, cpu_us=named, client_us=5.0)


def runs() -> dict[tuple[Calls, str], list[Run]]:
    """Return three rounds of everything, all alike."""
    fleet = run(1.0, router=1.0, shard_0=2.0, shard_1=3.0)
    return {
        (calls, kind): [run(2.0, embedded=4.0) if kind == EMBEDDED else fleet] * 3
        for calls in LOADS
        for kind in (EMBEDDED, FLEET)
    }


def test_every_load_has_a_row_of_each_kind_with_the_cpu_of_each_process() -> None:
    rows = list(rows_of(runs()))
    assert [row[:2] for row in rows] == [
        (calls.name, kind) for calls in LOADS for kind in (FLEET, EMBEDDED)
    ]
    assert {len(row) for row in rows} == {12}
    assert rows[0][6:10] == (1.0, 2.0, 3.0, 5.0)
    assert rows[1][6:10] == (4.0, "-", "-", 5.0)


def test_the_ratio_is_that_of_runs_of_the_same_round() -> None:
    measured = runs()
    measured[SINGLES, EMBEDDED] = [run(rate, embedded=1.0) for rate in (2, 4, 3)]
    measured[SINGLES, FLEET] = [run(rate, router=1, shard_0=1, shard_1=1) for rate in (1, 4, 9)]
    ratios = {row[:2]: row[10] for row in rows_of(measured)}
    assert ratios[SINGLES.name, FLEET] == 1.0
    assert ratios[SINGLES.name, EMBEDDED] == 1.0
    assert ratios[BATCHES.name, FLEET] == 0.5


def test_a_lone_query_is_compared_with_the_lone_empty_call_of_its_round() -> None:
    measured = runs()
    measured[SINGLE_ALONE, EMBEDDED] = [run(1, p50, embedded=1.0) for p50 in (3.0, 5.0, 9.0)]
    measured[EMPTY_ALONE, EMBEDDED] = [run(1, p50, embedded=1.0) for p50 in (1.0, 4.0, 2.0)]
    beyond = {row[:2]: row[5] for row in rows_of(measured)}
    assert beyond[SINGLE_ALONE.name, EMBEDDED] == 2.0
    assert beyond[SINGLES.name, EMBEDDED] == "-"


def told(**codes: int) -> str:
    """Return what the load generator says of calls of these statuses, 10 a second."""
    return json.dumps(
        {
            "codes": codes,
            "rate_achieved_per_s": 10.0,
            "latency_p50_ms": 1.5,
            "latency_p99_ms": 2.5,
            "client_cpu_us_per_call": 640.0,
        }
    )


def test_a_batch_counts_as_its_queries() -> None:
    measured = run_of(BATCHES, told(OK=5), {"router": 0.32})
    assert measured.queries_per_s == 640.0
    assert measured.cpu_us == {"router": pytest.approx(1_000.0)}
    assert measured.client_us == 10.0


def test_an_empty_call_counts_as_one() -> None:
    measured = run_of(EMPTY_ALONE, told(OK=5), {"embedded": 0.01})
    assert measured.queries_per_s == 10.0
    assert measured.cpu_us == {"embedded": pytest.approx(2_000.0)}


@pytest.mark.parametrize("codes", [{"OK": 5, "UNAVAILABLE": 1}, {}])
def test_a_run_with_calls_that_failed_is_none(codes: dict[str, int]) -> None:
    with pytest.raises(RuntimeError, match="not all calls succeeded"):
        run_of(SINGLES, told(**codes), {})


@pytest.mark.parametrize(
    ("calls", "options"),
    [
        (EMPTY_ALONE, "--closed --concurrency 1 --warmup 0 --call empty"),
        (BATCHES, "--closed --concurrency 4 --warmup 0 --collection fanout --batch 64"),
        (
            Calls("at a rate", 9, 1, rate_per_s=100.0),
            "--rps 100 --concurrency 9 --warmup 0 --collection fanout --batch 1",
        ),
    ],
)
def test_a_load_is_told_to_the_generator(calls: Calls, options: str) -> None:
    assert " ".join(calls.options) == options
