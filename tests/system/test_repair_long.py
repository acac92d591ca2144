"""1,000 flips in logs that killed processes left: all commits come back, but at most one.

It resumes: what was tried is in `build/repair-flips.jsonl`, one line a flip. `make test-long` runs
it; `tests/shard/engine/test_repair.py` has ten flips of each kind.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.shard.engine.contents import ENGINE, check_contents
from tests.shard.engine.damaged_directories import LOG, Killed, flip_some, killed, repaired_words
from tests.source_tree import ROOT
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.repair_findings import Outcome

HISTORIES = 20
FLIPS = 50
"""In each history: 1,000 in all."""

RESULTS = ROOT / "build" / "repair-flips.jsonl"

pytestmark = pytest.mark.system_long


def tried(results: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Return what was tried before, by history and flip."""
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {(line["history"], line["flip"]): line for line in lines}


def one(history: Killed, number: int, flip: int, directory: Path) -> dict[str, Any]:
    """Flip a bit of a copy's log and repair it; return what came of it."""
    place = history.copy(directory)
    bit = flip_some(place / LOG, Random(number * 1_000 + flip))
    begun_s = time.process_time()
    found = repaired_words(directory)
    seconds = time.process_time() - begun_s
    assert found.outcome in (Outcome.REPAIRED, Outcome.SOUND), found
    with closing(Collection.open(Disk(), place, 0, ENGINE)) as collection:
        if found.whole:
            check_contents(collection, history.contents)
        assert collection.reads.ledger().adds_up
    shutil.rmtree(directory)
    return {
        "history": number,
        "flip": flip,
        "bit": bit,
        "outcome": found.outcome.value,
        "commits_lost": len(found.commits_lost),
        "cpu_s": round(seconds, 3),
    }


@pytest.mark.parametrize("number", range(HISTORIES))
def test_a_flip_in_a_log_costs_at_most_one_commit(tmp_path: Path, number: int) -> None:
    known = tried(RESULTS)
    RESULTS.parent.mkdir(exist_ok=True)
    history = killed(tmp_path / "history", compacted=bool(number % 2), seed=number)
    found = []
    for flip in range(FLIPS):
        line = known.get((number, flip))
        if line is None:
            line = one(history, number, flip, tmp_path / "shard-0")
            with RESULTS.open("a") as results:
                results.write(json.dumps(line) + "\n")
        found.append(line)
    lost = sum(line["commits_lost"] > 0 for line in found)
    cpu_s = sum(line["cpu_s"] for line in found)
    print(f"history {number}: {len(found)} flips, {lost} lost a commit, {cpu_s:.1f} CPU seconds")
    assert max(line["commits_lost"] for line in found) <= 1
