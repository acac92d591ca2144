"""The table of words: what its rows say, and whether a bar is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from benchmarks.fanout import Calls
from benchmarks.report import Cell
from benchmarks.words import (
    ALONE,
    BATCHES,
    BY_H2LOAD,
    CODES,
    EMBEDDED,
    EMPTY,
    EMPTY_ALONE,
    FLEET,
    LINES,
    PLAIN,
    SINGLES,
    Figures,
    rows_of_rates,
    rows_of_times,
)


def rounds(*rates: float) -> list[Figures]:
    """Return rounds of these rates."""
    return [Figures(queries_per_s=rate, recall=0.96, p50_ms=1.0, client_us=9.0) for rate in rates]


def all_alike() -> dict[tuple[str, str], Sequence[Figures]]:
    """Return three rounds of every line, all alike."""
    return {(line.load, line.who): rounds(10, 10, 10) for line in LINES}


def ratio_and_bar(
    runs: Mapping[tuple[str, str], Sequence[Figures]], load: Calls, who: str
) -> list[Cell]:
    """Return both of a row."""
    rows = {row[:2]: row for row in rows_of_rates(runs, {EMBEDDED: "nprobe 7"})}
    return list(rows[load.name, who][8:10])


def test_a_ratio_is_that_of_ours_in_the_same_round() -> None:
    runs = all_alike()
    runs[BATCHES.name, EMBEDDED] = rounds(8, 2, 9)
    runs[BATCHES.name, CODES] = rounds(10, 4, 3)
    assert ratio_and_bar(runs, BATCHES, CODES) == [0.8, ">= 0.7, met"]


def test_a_bar_that_is_not_reached_is_missed() -> None:
    runs = all_alike()
    runs[SINGLES.name, BY_H2LOAD] = rounds(3, 3, 3)
    assert ratio_and_bar(runs, EMPTY, BY_H2LOAD) == [0.3, ">= 0.35, missed"]
    assert ratio_and_bar(runs, SINGLES, PLAIN) == [1.0, ">= 2, missed"]


def test_without_h2load_its_rows_say_so() -> None:
    runs = {key: of_key for key, of_key in all_alike().items() if key[1] != BY_H2LOAD}
    rows = list(rows_of_rates(runs, {EMBEDDED: "nprobe 7"}))
    assert {len(row) for row in rows} == {11}
    assert sum("not installed" in str(row[1]) for row in rows) == 2


def alone(**ms: tuple[float, float]) -> dict[tuple[str, str], Sequence[Figures]]:
    """Return one round of one query at a time: p50 of a search and of an empty call by who."""
    runs: dict[tuple[str, str], Sequence[Figures]] = {}
    for who, (search_ms, empty_ms) in zip((EMBEDDED, FLEET, PLAIN), ms.values(), strict=True):
        runs[ALONE.name, who] = [Figures(queries_per_s=1, p50_ms=search_ms)]
        runs[EMPTY_ALONE.name, who] = [Figures(queries_per_s=1, p50_ms=empty_ms)]
    return runs


def test_the_time_of_an_empty_call_is_taken_off() -> None:
    rows = list(rows_of_times(alone(embedded=(1.5, 0.7), fleet=(3.0, 1.0), plain=(5.0, 1.0))))
    assert {len(row) for row in rows} == {11}
    embedded, _, plain = rows
    assert embedded[6] == pytest.approx(0.8)
    assert plain[8] == pytest.approx(0.5)
    assert [row[9] for row in rows] == ["<= 1 ms, met", "-", "<= 0.7, met"]


def test_a_slow_lone_query_misses_its_bars() -> None:
    rows = list(rows_of_times(alone(embedded=(3.0, 0.7), fleet=(5.0, 1.0), plain=(5.0, 1.0))))
    assert [row[9] for row in rows] == ["<= 1 ms, missed", "-", "<= 0.7, missed"]
