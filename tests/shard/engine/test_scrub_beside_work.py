"""A scrub beside writes, deletes, compactions, trainings and checkpoints raises no false alarm.

First between the pieces of a pass, in orders that a seed draws; then on threads of their own.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.shard.engine.rot import absorb, remove, scrubbed, upsert
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.engine.scrub import Scrub
from vectorshard.shard.types import IdType, IndexKind

SEEDS = 3
LONG_SEEDS = 200
IDS = 330
LONG_S = 60.0
SHORT_S = 1.2


def operations(collection: Collection, draw: random.Random) -> dict[str, Callable[[], None]]:
    """Return what may happen to a collection, by name."""

    def write() -> None:
        first = draw.randrange(IDS)
        rows = range(first, min(IDS, first + draw.choice([1, 7, 40])))
        upsert(collection, rows, seed=draw.randrange(1_000))

    def delete() -> None:
        first = draw.randrange(IDS)
        remove(collection, range(first, min(IDS, first + draw.choice([1, 5, 30]))))

    def compact() -> None:
        collection.compaction.run(lambda: None)

    def sweep() -> None:
        for _ in range(draw.choice([1, 9])):
            if collection.compaction.sweep_due:
                collection.compaction.sweep()

    def checkpoint() -> None:
        if collection.maintenance.checkpoint_due:
            collection.maintenance.checkpoint()

    return {
        "write": write,
        "delete": delete,
        "compact": compact,
        "sweep": sweep,
        "train": lambda: build_index(collection, lambda: 1.0),
        "absorb": lambda: absorb(collection),
        "absorb a piece": lambda: suppressed(collection.maintenance.absorb_piece),
        "checkpoint": checkpoint,
        "update": lambda: suppressed(lambda: collection.writes.update(draw.uniform(0.8, 0.99))),
    }


def suppressed(call: Callable[[], object]) -> None:
    """Call without an answer."""
    call()


def check_unalarmed(collection: Collection, scrub: Scrub, history: object = "") -> None:
    assert scrub.description.findings == (), history
    assert not collection.problems, history


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_order_of_work_between_pieces_raises_an_alarm(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    check_order(tmp_path, seed)


@pytest.mark.system_long
def test_none_of_many_orders_of_work_raises_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    for seed in range(SEEDS, LONG_SEEDS):
        check_order(tmp_path / str(seed), seed)


def check_order(path: Path, seed: int) -> None:
    """Let work that a seed draws happen between the pieces of two passes."""
    draw = random.Random(seed)
    id_type, kind = draw.choice(list(IdType)), draw.choice(list(IndexKind))
    with closing(scrubbed(path, id_type=id_type, kind=kind)) as collection:
        now = [0.0]
        scrub = Scrub(collection.state, collection.maintenance, lambda: now[0])
        work = operations(collection, draw)
        history: list[str] = []
        for _ in range(2):
            now[0] = scrub._due_at
            while scrub.step() is not None:
                if draw.random() < 0.5:
                    history.append(draw.choice(list(work)))
                    work[history[-1]]()
                check_unalarmed(collection, scrub, (seed, history))
        assert scrub.description.passes == 2
        assert len(history) > 20


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut a pass over a few hundred rows into many pieces."""
    monkeypatch.setattr("vectorshard.shard.engine.scrub_rows.PIECE_ROWS", 40)
    monkeypatch.setattr("vectorshard.shard.engine.scrub_rows.KEYWORDS_AT_ONCE", 1)
    monkeypatch.setattr("vectorshard.shard.engine.scrub_rows.PLACES_AT_ONCE", 200)
    monkeypatch.setattr("vectorshard.shard.engine.scrub_index.LISTS_AT_ONCE", 2)
    monkeypatch.setattr("vectorshard.shard.engine.scrub_index.WINDOW_ROWS", 90)
    monkeypatch.setattr("vectorshard.shard.engine.scrub_files.SUM_PIECE_ROWS", 60)
    monkeypatch.setattr("vectorshard.shard.engine.scrub_files.FILE_PIECE_BYTES", 1_000)
    monkeypatch.setattr("vectorshard.shard.storage.record_check.COMMITS_AT_ONCE", 1)


def run_beside(collection: Collection, seconds: float, seed: int) -> int:
    """Let a writer, an upkeep thread and a scrub run for so long; return the passes."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def repeat(names: tuple[str, ...], seed: int) -> None:
        draw = random.Random(seed)
        work = operations(collection, draw)
        try:
            while not stop.is_set():
                work[draw.choice(names)]()
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=repeat, args=(("write", "write", "delete"), seed)),
        threading.Thread(target=repeat, args=(("train", "compact", "sweep"), seed + 1)),
        threading.Thread(
            target=repeat, args=(("absorb a piece", "absorb", "checkpoint"), seed + 2)
        ),
    ]
    timer = threading.Timer(seconds, stop.set)
    for thread in (*threads, timer):
        thread.start()
    passes = 0
    while not stop.is_set():
        description = collection.scrub.run_pass(read_disk=passes % 2 == 1)
        passes += 1
        if description.findings:
            stop.set()
    for thread in threads:
        thread.join()
    timer.cancel()
    assert not failures, failures
    check_unalarmed(collection, collection.scrub)
    return passes


def test_a_scrub_beside_threads_that_change_everything_raises_no_alarm(tmp_path: Path) -> None:
    with closing(scrubbed(tmp_path)) as collection:
        assert run_beside(collection, SHORT_S, seed=7) > 0


@pytest.mark.system_long
@pytest.mark.parametrize("kind", list(IndexKind))
@pytest.mark.parametrize("id_type", list(IdType))
def test_a_scrub_raises_no_alarm_in_a_long_time(
    tmp_path: Path, kind: IndexKind, id_type: IdType
) -> None:
    with closing(scrubbed(tmp_path, kind=kind, id_type=id_type)) as collection:
        assert run_beside(collection, LONG_S, seed=11) > 10
