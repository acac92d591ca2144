"""What a router costs: what the table's rows say, and the truth that its recall is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import router_cost
from benchmarks.fanout import BATCHES, DIM, SINGLES, Calls, Run
from benchmarks.report import Cell
from benchmarks.router_cost import (
    DIRECT,
    LOADS,
    SHARDS,
    Quality,
    fleet_name,
    rows_of,
    truth_file,
)
from benchmarks.vectors import clustered

TWO, EIGHT = fleet_name(2), fleet_name(8)
NAMES = [DIRECT, *map(fleet_name, SHARDS)]
QUALITIES = {name: Quality(0.96, 40 + place) for place, name in enumerate(NAMES)}


def run(rate: float = 1.0, p50_ms: float = 1.0, p99_ms: float = 2.0, **cpu_us: float) -> Run:
    """Return a run; the CPU of its processes by their names, a blank an underline."""
    named = {name.replace("_", " "): figure for name, figure in cpu_us.items()}
    return Run(queries_per_s=rate, p50_ms=p50_ms, p99_ms=p99_ms, cpu_us=named, client_us=5.0)


def runs() -> dict[tuple[Calls, str], list[Run]]:
    """Return three rounds of everything, all alike."""
    fleet, direct = run(router=3, shard_0=4, shard_1=5), run(shard_0=6)
    return {
        (calls, name): [direct if name == DIRECT else fleet] * 3
        for calls in LOADS
        for name in NAMES
    }


def table(measured: dict[tuple[Calls, str], list[Run]]) -> dict[tuple[str, str], tuple[Cell, ...]]:
    """Return the rows' other cells by their first two."""
    return {(str(row[0]), str(row[1])): row[2:] for row in rows_of(measured, QUALITIES)}


def test_every_load_has_a_row_of_each_the_one_that_is_asked_itself_first() -> None:
    rows = list(rows_of(runs(), QUALITIES))
    assert [row[:2] for row in rows] == [(calls.name, name) for calls in LOADS for name in NAMES]
    assert NAMES[1:] == [
        "router + 1 shard",
        "router + 2 shards",
        "router + 4 shards",
        "router + 8 shards",
    ]
    assert {len(row) for row in rows} == {13}


def test_the_routers_cpu_is_told_apart_from_that_of_its_shards_together() -> None:
    rows = table(runs())
    assert rows[SINGLES.name, TWO][3:5] == (3, 9)
    assert rows[SINGLES.name, DIRECT][3:5] == (0, 6)
    assert rows[SINGLES.name, TWO][8] == 2.0  # all of the servers' by the shard's


def test_the_ratios_are_those_of_runs_of_the_same_round() -> None:
    measured = runs()
    measured[BATCHES, DIRECT] = [
        run(8, 1.0, 5.0, shard_0=1),
        run(4, 2.0, 1.0, shard_0=5),
        run(2, 9.0, 2.0, shard_0=4),
    ]
    measured[BATCHES, EIGHT] = [
        run(4, 3.0, 5.0, router=1, shard_0=3),
        run(4, 4.0, 3.0, router=5, shard_0=10),
        run(1, 9.0, 4.0, router=1, shard_0=1),
    ]
    rows = table(measured)
    assert rows[BATCHES.name, EIGHT][5:9] == (2.0, 2.0, 0.5, 3.0)
    assert rows[BATCHES.name, DIRECT][5:9] == (1.0, 1.0, 1.0, 1.0)


def test_each_row_says_what_was_found_and_how_many_lists_that_took() -> None:
    assert table(runs())[BATCHES.name, EIGHT][9:] == (0.96, 44)


def test_the_truth_is_of_the_rows_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_cost, "QUERIES", 3)
    with np.load(truth_file(tmp_path, 50)) as written:
        vectors, queries, neighbors = (
            written[name] for name in ("vectors", "queries", "neighbors")
        )
    assert np.array_equal(vectors, clustered(50, DIM))
    assert (queries.shape, neighbors.shape) == ((3, DIM), (3, router_cost.K))
    distances = np.square(queries[:, None] - vectors[None]).sum(axis=2)
    assert np.array_equal(neighbors, np.argsort(distances, axis=1)[:, : router_cost.K])
