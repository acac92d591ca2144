"""No damage to any kind of file stays silent: a hundred harms here, thousands in the long tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.damage.__main__ import RESULTS, run, trials
from tests.damage.harm import class_of

SEEDS = range(100)
LONG = 20_000
KINDS = {"LOCK", "ballast", "filters", "index", "log-end", "register.json", "rows", "session"} | {
    "shard.json",
    "store.db",
    "store.db-shm",
    "store.db-wal",
    "witness.json",
}


def test_no_harm_of_a_hundred_is_silent(tmp_path: Path) -> None:
    tried = list(trials(SEEDS, tmp_path))
    silent = [f"seed {seed}: {harm}: {verdict.silent}" for seed, harm, verdict in tried]
    assert not [line for line, (*_, verdict) in zip(silent, tried, strict=True) if verdict.silent]
    assert {class_of(harm.file) for _, harm, _ in tried} == KINDS
    assert len({verdict.noticed for *_, verdict in tried}) >= 3


@pytest.mark.system_long
def test_no_harm_of_many_is_silent() -> None:
    assert not run(range(LONG), RESULTS), "see the table, and `python -m tests.damage --help`"
