"""Accept a loss under the recorder, and check that a power cut in its middle leaves it repeatable.

The shard has lost the directory of `words`, and has an older copy of `twins`. What the other shard
remembers is what was reported before.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.crash_recorder.check import HurriedDisk, found_in, logged, opened
from tests.crash_recorder.membership import members_of, report_of, settle
from tests.crash_recorder.plan import Expected, Step
from tests.crash_recorder.recorder import Recorder
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.membership import (
    AcceptedLoss,
    AcceptLossRequest,
    CollectionState,
    ShardReport,
    Stage,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Call, Ledger, UpsertRequest

NAMES: Final = ("twins", "words")
CREATED: Final = {name: Step(0, "staged", name, seed=5) for name in NAMES}
KEPT_ROWS, LOST_ROWS, LATER_ROWS = 20, 7, 5
NEW_LIFE: Final = 2


async def write(shard: LocalShard, name: str, first: int, rows: int) -> None:
    """Write rows, from a number on."""
    step = Step(0, "upsert", name, tuple(range(first, first + rows)), seed=first)
    request = step.write(CREATED[name].config().id_type)
    assert isinstance(request, UpsertRequest)
    await shard.upsert(request)


def request_of(report: ShardReport) -> AcceptLossRequest:
    """Return the request of a router that has seen a report, and sees no collection of it now."""
    return AcceptLossRequest(
        shard=report.shard,
        accept=True,
        life=NEW_LIFE,
        losses=tuple(
            AcceptedLoss(
                collection=each.name,
                incarnation=each.incarnation,
                reason="a test",
                config=CREATED[each.name].config(),
                witnessed_sequence=each.sequence,
                witnessed_accepted=each.accepted,
                witnessed_live=each.live,
                stage=Stage.COMPLETE,
                members=members_of(report),
            )
            for each in report.collections
        ),
    )


async def lose(directory: Path) -> ShardReport:
    """Write two collections, and let the disk lose some of them; return what was there."""
    collections = directory / "shard-0" / "collections"
    async with opened(Disk(), directory, trains=False) as shard:
        for name, created in CREATED.items():
            call = Call(staged=True, incarnation=f"{name}-first")
            await shard.create_collection(created.config(), call=call)
            await settle(shard, await report_of(shard))
            await write(shard, name, 0, KEPT_ROWS)
    shutil.copytree(collections / "twins", directory / "older")
    async with opened(Disk(), directory, trains=False) as shard:
        for name in NAMES:
            await write(shard, name, KEPT_ROWS, LOST_ROWS)
        report = await report_of(shard)
    shutil.rmtree(collections / "words")
    shutil.rmtree(collections / "twins")
    (directory / "older").rename(collections / "twins")
    return report


async def accept(directory: Path, request: AcceptLossRequest, recorder: Recorder) -> None:
    """Accept the loss, and write on."""
    async with opened(Disk(), directory, trains=False) as shard:
        await shard.accept_loss(request)
        recorder.mark(json.dumps({"accepted": NEW_LIFE}))
        for name in NAMES:
            await write(shard, name, 100, LATER_ROWS)
        recorder.mark(json.dumps({"written": LATER_ROWS}))


def ledger_of(name: str, written: int) -> Ledger:
    """Return the ledger that a collection must have, with its live rows as buffered ones."""
    lost = LOST_ROWS if name == "twins" else KEPT_ROWS + LOST_ROWS
    accepted = KEPT_ROWS + LOST_ROWS + written
    return Ledger(accepted=accepted, buffered=accepted - lost, lost=lost)


def check_accepted(report: ShardReport) -> None:
    """Check that a shard has all collections, and that they know its directory by its new life."""
    assert sorted(each.name for each in report.collections) == list(NAMES)
    for each in report.collections:
        assert each.state is CollectionState.LIVE
        assert each.incarnation == f"{each.name}-first"
        own = next(member for member in each.members if member.shard == report.shard)
        assert (own.directory, own.life) == (report.directory, NEW_LIFE)


async def _check(directory: Path, request: AcceptLossRequest, marks: Sequence[str]) -> None:
    accepted = any("accepted" in mark for mark in marks)
    async with opened(HurriedDisk(), directory, trains=False) as shard:
        report = await report_of(shard)
        assert report.life == NEW_LIFE or not accepted
        if report.life == NEW_LIFE:  # the last step: nothing else is left to be done
            check_accepted(report)
        await shard.accept_loss(request)  # an operator repeats it
    async with opened(HurriedDisk(), directory, trains=False) as shard:
        report = await report_of(shard)
        assert report.life == NEW_LIFE
        check_accepted(report)
        found = await found_in(shard)
        for each in report.collections:
            written = len(found[each.name].rows) - (KEPT_ROWS if each.name == "twins" else 0)
            assert written in (0, LATER_ROWS)
            assert written or not any("written" in mark for mark in marks)
            ledger = (await shard.describe(each.name)).shards[0].ledger
            assert ledger == ledger_of(each.name, written)
            await write(shard, each.name, 200, 1)
        assert sorted(found) == list(NAMES)


def check_loss(
    request: AcceptLossRequest, directory: Path, marks: Expected, _number: int
) -> Counter[str]:
    """Check that a repeated acceptance leads to the accepted loss, whatever a power cut left."""
    with logged(with_errors=True):  # of what is lost
        asyncio.run(_check(directory, request, marks.noted))
    return Counter()


def lose_and_accept(root: Path, requested: Path) -> None:
    """Lose and accept below `root`; pickle the request into a file, for the check."""
    recorder = Recorder()
    directory = root / "loss"
    directory.mkdir()
    request = request_of(asyncio.run(lose(directory)))
    requested.write_bytes(pickle.dumps(request))
    recorder.settle()
    recorder.mark(json.dumps({"life": directory.name, "after": None}))
    asyncio.run(accept(directory, request, recorder))
    recorder.mark(json.dumps({"end": directory.name}))
