"""Live through histories on a real shard, under the recorder: `python -m ... live`.

A history has lives. Each begins on an empty directory, or on what a power cut has left of the life
before, which is rebuilt next to it. So what the start after a power cut does is recorded too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import structlog

from tests.crash_recorder.breakages import BREAKAGES
from tests.crash_recorder.check import found_in, logged, opened
from tests.crash_recorder.membership import other_report, report_of, seen_in, settle
from tests.crash_recorder.plan import Expected, Step, begun, done, next_round, seen
from tests.crash_recorder.recorder import Recorder, operations
from tests.crash_recorder.states import lives, moments
from tests.crash_states import Image
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.storage import row_database, row_file
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    Call,
    DeleteRequest,
    Token,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
)

FIRST_BYTES = 1_024
CHECKPOINT_BYTES = 60_000
"""So that files grow, and logs are checkpointed, within a small history."""

FAILING = ("rows-", "store.db-wal", "store.db", "log-end", "index-", "register", "shard-0")
"""What is in the names of the files whose syncs fail; the last one is in all."""


@dataclass(frozen=True, slots=True)
class Order:
    """A history to live: its seed, its rounds, how many power cuts, and what is broken."""

    seed: int
    rounds: int = 24
    cuts: int = 1
    breakage: str = ""
    faults: float = 0.0  # the share of rounds in which a sync fails

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"history-{self.seed}{self.breakage and '-' + self.breakage}"


class Life:
    """One life of a history: a shard in a directory, and the marks of what it does."""

    def __init__(
        self, recorder: Recorder, expected: Expected, disk: Disk, faults: float = 0.0
    ) -> None:
        self.recorder = recorder
        self.expected = expected
        self.disk = disk
        self.faults = faults

    @property
    def told(self) -> Mapping[str, int]:
        """What the shard must remember of the other one."""
        return {} if self.expected.seen is None else self.expected.seen.told

    def mark(self, event: str) -> None:
        """Record an event, and follow it."""
        self.recorder.mark(event)
        self.expected.follow(event)

    async def live(self, directory: Path, random: Random, rounds: int) -> None:
        """Start, settle what a power cut left open, and do some rounds."""
        while rounds:
            async with opened(self.disk, directory) as shard:
                report = await report_of(shard)
                await settle(shard, report)
                self.mark(seen(seen_in(report, self.told)))
                found = await found_in(shard)
                for event in self.expected.settle(found):
                    self.recorder.mark(event)
                self.expected.check(found)
                while rounds:
                    rounds -= 1
                    steps = next_round(random, self.expected)
                    faulty = random.random() < self.faults
                    self.recorder.fail_sync(random.choice(FAILING) if faulty else "")
                    await asyncio.gather(*(self._do(shard, step, faulty) for step in steps))
                    if faulty or steps[0].kind == "restart":
                        break
            self.recorder.fail_sync("")

    async def _do(self, shard: LocalShard, step: Step, faulty: bool) -> None:
        """Do a step; if a sync `faulty` fails, it may have been done, as after a power cut."""
        self.mark(begun(step))
        try:
            await self._done(shard, step, faulty)
        except (VectorShardError, OSError, sqlite3.Error):
            if not faulty:
                raise

    async def _done(self, shard: LocalShard, step: Step, faulty: bool) -> None:
        incarnation: str | None = None
        token: Token | None = None
        kept = self.expected.collections.get(step.collection)
        match step.kind:
            case "create":
                entry, _ = await shard.create_collection(step.config())
                incarnation = entry.incarnation
            case "staged":
                call = Call(staged=True, incarnation=f"{step.seed:032x}")
                entry, _ = await shard.create_collection(step.config(), call=call)
                incarnation = entry.incarnation
                await settle(shard, await report_of(shard))
            case "exchange":
                other = other_report(await report_of(shard), step.number)
                told = {each.incarnation: each.sequence for each in other.collections}
                if faulty:  # what cannot be written is remembered until the next restart only
                    told = {}
                forget = sorted(self.expected.dropped) if step.number % 2 else []
                self.mark(json.dumps({"forget": forget}))
                report = await report_of(shard, other, forget=forget)
                self.mark(seen(seen_in(report, {**self.told, **told})))
            case "drop":
                await shard.drop_collection(step.collection)
            case "update":
                target = step.target_recall()
                await shard.update_collection(
                    UpdateRequest(collection=step.collection, target_recall=target)
                )
            case "train":
                await shard.train(TrainRequest(collection=step.collection, wait=True))
            case "upsert" | "insert" | "delete":
                assert kept is not None
                write = step.write(kept.config.id_type)
                if isinstance(write, UpsertRequest):
                    token = (await shard.upsert(write)).token
                else:
                    assert isinstance(write, DeleteRequest)
                    token = (await shard.delete(write)).token
        self.mark(done(step, incarnation, token))


def live_history(order: Order, root: Path, log: Path, recorder: Recorder) -> None:
    """Live through a history, in directories below `root`."""
    random = Random(order.seed)
    disk = BREAKAGES[order.breakage]()
    expected = Expected()
    after: int | None = None
    for number in range(order.cuts + 1):
        name = f"{order.name}-{number}"
        directory = root / name
        directory.mkdir()
        if number:
            recorded = operations(log, root)
            life = lives(recorded)[-1]
            after = random.choice(moments(recorded, life, random, 10))
            Image(recorded[:after]).materialise(directory, random.getrandbits(32), life.node)
            expected = Expected()
            expected.follow_all(life.marks(recorded, after))
        recorder.settle()
        recorder.mark(json.dumps({"life": name, "after": after}))
        rounds = order.rounds // (order.cuts + 1)
        asyncio.run(Life(recorder, expected, disk, order.faults).live(directory, random, rounds))
        recorder.mark(json.dumps({"end": name}))


def quiet_logs() -> None:
    """Print warnings and errors only."""
    bound = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=bound)


def live_all(root: str, log: str, orders: str) -> None:
    """Live through the histories that were ordered, as JSON."""
    quiet_logs()
    row_file.FIRST_BYTES = FIRST_BYTES
    row_database.CHECKPOINT_BYTES = CHECKPOINT_BYTES
    recorder = Recorder()
    for order in (Order(**order) for order in json.loads(orders)):
        with logged(with_errors=order.faults > 0):
            live_history(order, Path(root), Path(log), recorder)


if __name__ == "__main__":
    live_all(*sys.argv[1:])
