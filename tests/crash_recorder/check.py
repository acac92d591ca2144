"""Start a real shard on what a power cut leaves, and look for everything that was acknowledged."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import structlog
from structlog.testing import LogCapture

from tests.crash_recorder.membership import check_report, check_tombstones, report_of, settle
from tests.crash_recorder.plan import Expected, Found, Kept, Step
from tests.shard.engine.contents import ENGINE, EVERY_ROW, IDENTITY, WHOLE_ROWS, now
from vectorshard.shard.engine import state
from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage import ballast
from vectorshard.shard.storage.data_directory import ShardIdentity
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.index_file import with_stored_index
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.types import (
    CountRequest,
    DeleteRequest,
    GetRequest,
    Int64Array,
    Ledger,
    ListRequest,
    Metric,
    SearchRequest,
    TrainRequest,
    UpsertRequest,
)

PAGE_SIZE: Final = 10_000
BALLAST_BYTES: Final = 2_000  # writing the real one would take as long as all the rest
TWO_SHARDS: Final = replace(IDENTITY, shards_total=2)  # so that one has something to remember
LATER_UPSERT: Final = Step(1_000_000, "upsert", numbers=(0, 7, 8, 149, 160), seed=11)
LATER_DELETE: Final = Step(1_000_001, "delete", numbers=(1, 7, 9, 148), seed=12)


class HurriedDisk(Disk):
    """Syncs nothing: to look at a crash's remains, which are thrown away."""

    def sync(self, file: DiskFile) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = super().connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection


@contextmanager
def logged(*, with_errors: bool = False) -> Iterator[list[MutableMapping[str, Any]]]:
    """Yield the list of what is logged; AssertionError at the end if an error is in it.

    Not of any if the start is to find something: `with_errors`.
    """
    processors = structlog.get_config()["processors"]
    events = LogCapture()
    structlog.configure(processors=[structlog.processors.format_exc_info, events])
    try:
        yield events.entries
    finally:
        structlog.configure(processors=processors)
    errors = [each for each in events.entries if each["log_level"] in ("error", "critical")]
    texts = [f"{each.pop('event')} {each.pop('exception', '')} {each}" for each in errors]
    # A step that runs while its collection is dropped finds its directory gone.
    texts = [text for text in texts if not re.search(r"work failed(.|\n)*FileNotFoundError", text)]
    assert with_errors or not texts, "\n".join(texts)


# ---- a shard ------------------------------------------------------------------------------------


@contextmanager
def index_files_required() -> Iterator[None]:
    """Fail the start if a recorded index file is not sound, which trains again otherwise."""
    accepted = with_stored_index

    def required(
        directory: Path, row_store: RowStore, snapshot: Snapshot, repaired: Int64Array
    ) -> Snapshot:
        found = accepted(directory, row_store, snapshot, repaired)
        assert (found.index is None) == (row_store.index_file is None), "the index file is damaged"
        return found

    with patch.object(state, with_stored_index.__name__, required):
        yield


@asynccontextmanager
async def opened(
    disk: Disk, directory: Path, *, trains: bool = True, identity: ShardIdentity = TWO_SHARDS
) -> AsyncIterator[LocalShard]:
    """Lend a shard with its background threads; they only absorb unless it `trains`."""
    with ExitStack() as patches:
        patches.enter_context(index_files_required())
        patches.enter_context(patch.object(ballast, "BALLAST_BYTES", BALLAST_BYTES))
        if not trains:
            idle = patch.object(BackgroundThreads, "build_step", lambda _self, _collection: False)
            patches.enter_context(idle)
        shard = LocalShard.open(disk, directory / "shard-0", identity, ENGINE, now)
        try:
            yield shard
        finally:
            await shard.close()


async def found_in(shard: LocalShard) -> dict[str, Found]:
    """Read everything that a shard has."""
    found = {}
    for entry in await shard.list_collections():
        name = entry.config.name
        request = ListRequest(collection=name, page_size=PAGE_SIZE, include=WHOLE_ROWS)
        rows = await shard.list_rows(request)
        assert rows.cursor is None
        found[name] = Found.of(entry.config, entry.incarnation, rows)
    return found


# ---- a crash state ------------------------------------------------------------------------------


NEVER_AFTER_A_POWER_CUT: Final = {
    ProblemKind.MISSING,
    ProblemKind.DAMAGED,
    ProblemKind.UNREADABLE,
    ProblemKind.WRITES_STOPPED,
}
"""Problems that only a lying or failing disk, or an operator, may lead to."""


TRAINED_EVERY: Final = 10
REOPENED_EVERY: Final = 2
"""States, of which one is looked at more closely."""


def check_state(directory: Path, expected: Expected, number: int) -> Counter[str]:
    """Start on a directory, compare, and go on writing.

    Some, by their number, are also trained and compacted, or started once more. AssertionError, or
    what the shard raises, is a violation. Returns what was warned of.
    """
    with logged() as events:
        asyncio.run(_check_state(directory, expected, number))
    return Counter(event["event"] for event in events if event["log_level"] == "warning")


async def _check_state(directory: Path, expected: Expected, number: int) -> None:
    thorough = number % TRAINED_EVERY == 0
    async with opened(HurriedDisk(), directory, trains=thorough) as shard:
        report = await report_of(shard)
        if expected.seen is not None:
            check_report(report, expected.seen, expected.may_be_dropped)
        await settle(shard, report)
        found = await found_in(shard)
        expected.settle(found)
        check_tombstones(report, expected.dropped, expected.forgotten)
        expected.check(found)
        problems = [each for each in await shard.problems() if each.kind in NEVER_AFTER_A_POWER_CUT]
        assert not problems
        for name, kept in expected.collections.items():
            await check_reads(shard, name, kept)
        await go_on(shard, expected, thorough=thorough)
    if number % REOPENED_EVERY:
        return
    async with opened(HurriedDisk(), directory, trains=False) as shard:
        expected.check(await found_in(shard))
        for name, kept in expected.collections.items():
            await check_ledger(shard, name, kept)
    check_files(directory)


async def check_reads(shard: LocalShard, name: str, kept: Kept) -> None:
    """Compare what a collection answers with what it must hold."""
    await check_ledger(shard, name, kept)
    page = await shard.list_rows(
        ListRequest(collection=name, page_size=PAGE_SIZE, include=WHOLE_ROWS)
    )
    assert page.vectors is not None
    got = await shard.get(GetRequest(collection=name, ids=page.ids))  # checks their checksums
    assert got.ids.tolist() == page.ids.tolist()
    assert await shard.count(CountRequest(collection=name)) == len(page.ids)
    perfect = 0.0 if kept.config.metric is Metric.L2 else 1.0
    for effort in EVERY_ROW:
        request = SearchRequest(
            collection=name, queries=page.vectors, k=1, effort=effort, token=kept.token
        )
        answer = await shard.search(request)
        assert answer.receipt.shards[0].rows_visible == len(page.ids)
        assert answer.hits.ids.tolist() == page.ids.tolist()
        np.testing.assert_allclose(answer.hits.scores, perfect, atol=1e-6)


async def check_ledger(shard: LocalShard, name: str, kept: Kept) -> None:
    """Compare the ledger with what was accepted, replaced and deleted."""
    ledger = (await shard.describe(name)).shards[0].ledger
    assert ledger.adds_up
    assert ledger == Ledger(
        accepted=kept.contents.accepted,
        buffered=ledger.buffered,
        indexed=ledger.indexed,
        deleted=kept.contents.deleted,
        replaced=kept.contents.replaced,
    )


async def go_on(shard: LocalShard, expected: Expected, *, thorough: bool) -> None:
    """Write, create and drop, as if nothing had happened."""
    for name, kept in list(expected.collections.items()):
        for step in (LATER_UPSERT, LATER_DELETE):
            write = replace(step, collection=name).write(kept.config.id_type)
            if isinstance(write, UpsertRequest):
                await shard.upsert(write)
            else:
                assert isinstance(write, DeleteRequest)
                await shard.delete(write)
            kept = kept.after(write)
        if thorough:
            await shard.train(TrainRequest(collection=name, wait=True))
        await check_reads(shard, name, kept)
        expected.collections[name] = kept
    create = Step(1_000_002, "create", "later", seed=3)
    await shard.create_collection(create.config())
    await shard.drop_collection("later")


def check_files(directory: Path) -> None:
    """Check that a start and a stop leave no file that nobody needs.

    But for one of a fixed name next to the shard's own, which its next version replaces.
    """
    for path in directory.rglob("*"):
        assert not path.name.endswith(".damaged"), path
        assert not path.name.endswith(".new") or path.parent.name == "shard-0", path
        assert not path.name.startswith((".creating-", ".dropped-")), path
    for collection in (directory / "shard-0" / "collections").iterdir():
        left = [path.name for path in collection.iterdir()]
        assert sum(name.startswith("rows-") for name in left) == 1, left
        assert sum(name.startswith("index-") for name in left) <= 1, left
