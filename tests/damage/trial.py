"""Serve damaged directories, and judge whether the damage was noticed, by what, or is harmless.

Nothing of a harm may be silent: an answer that differs from what was written must be an error, or
say that it lacks rows. A harm that nobody notices must be proven to concern bytes without meaning.
"""

from __future__ import annotations

import asyncio
import filecmp
import json
import shutil
import sqlite3
from collections.abc import Collection as Container
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np
from structlog.testing import capture_logs

from tests.damage.harm import Harm, Kind, class_of
from tests.damage.stores import CONFIGS, DIM, ENGINE, SHARDS, Content, Stores, content_of
from vectorshard.cli.embedded import open_embedded
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.types import CollectionConfig, Effort, Int64Array, SearchRequest


class Noticed(Enum):
    """What noticed a harm first."""

    START = "start"
    READ = "read"
    SCRUB = "scrub"
    HARMLESS = "harmless"
    SILENT = "silent"


@dataclass(slots=True)
class Verdict:
    """Who noticed a harm first, in which words, and what was wrong without a word."""

    noticed: Noticed = Noticed.HARMLESS
    how: str = ""
    silent: list[str] = field(default_factory=list)

    def note(self, by: Noticed, how: str) -> None:
        """Note who noticed it, if nobody did before."""
        if self.noticed is Noticed.HARMLESS:
            self.noticed, self.how = by, how[:200]

    def wrong(self, what: str) -> None:
        """Note an answer that is wrong and does not say so."""
        self.noticed = Noticed.SILENT
        self.silent.append(what[:300])


def tried(harm: Harm, stores: Stores, base: Path, scratch: Path) -> Verdict:
    """Harm a copy of `base`, serve it, and judge what is said."""
    directory = scratch / "copy"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory, symlinks=True)
    harm.do(directory, stores.yesterday)
    return asyncio.run(_judged(harm, stores, base, directory))


async def _judged(harm: Harm, stores: Stores, base: Path, directory: Path) -> Verdict:
    verdict = Verdict()
    before = _meaning(harm, directory)
    with capture_logs() as logs:
        try:
            router = await open_embedded(directory, SHARDS, ENGINE)
        except VectorShardError as error:
            verdict.note(Noticed.START, f"{type(error).__name__}: {error}")
            return verdict
        try:
            for problem in await router.problems():
                verdict.note(Noticed.START, problem.text)
            for log in logs:
                if log["log_level"] in ("warning", "error"):
                    verdict.note(Noticed.START, f"{log['event']}: {log}")
            await _read(router, stores.content, verdict)
            await _scrub(router, verdict)
            await _search(router, stores.content, verdict)
        finally:
            await router.close()
    if verdict.noticed is Noticed.HARMLESS:
        verdict.how = _proof(harm, base, directory, before)
        if not verdict.how:
            verdict.wrong("nobody noticed it, and its bytes may mean something")
    return verdict


async def _read(router: Router, content: Content, verdict: Verdict) -> None:
    """Read every row with all that belongs to it."""
    try:
        found = await content_of(router)
    except VectorShardError as error:
        verdict.note(Noticed.READ, f"{type(error).__name__}: {error}")
        return
    if found != content:
        verdict.wrong(f"a listing differs in {_difference(found, content)}")


async def _scrub(router: Router, verdict: Verdict) -> None:
    for child in router._children.in_order():
        shard = child.shard
        assert isinstance(shard, LocalShard)
        for served in shard._collections.served.values():
            found = await asyncio.to_thread(served.collection.scrub.run_pass, True)
            for text in found.findings:
                verdict.note(Noticed.SCRUB, text)


async def _search(router: Router, content: Content, verdict: Verdict) -> None:
    """Search for every row, exactly and by the index: each is found, or said to be damaged."""
    for config in CONFIGS:
        try:
            damaged = {
                id_
                for shard in (await router.describe(config.name)).shards
                for id_ in shard.damaged_ids
            }
            for effort in (Effort(exact=True), Effort(nprobe=65_536)):
                await _find(router, config, content, damaged, effort, verdict)
        except VectorShardError as error:
            verdict.note(Noticed.READ, f"{type(error).__name__}: {error}")


async def _find(
    router: Router,
    config: CollectionConfig,
    content: Content,
    damaged: Container[int | str],
    effort: Effort,
    verdict: Verdict,
) -> None:
    rows = {
        id_: vector
        for (name, id_), (vector, _) in content.items()
        if name == config.name and id_ not in damaged
    }
    queries = np.frombuffer(b"".join(rows.values()), np.float32).reshape(-1, DIM)
    request = SearchRequest(collection=config.name, queries=queries, k=1, effort=effort)
    result = await router.search(request)
    found = result.hits.ids.tolist()
    if found != list(rows):
        verdict.wrong(f"{config.name}: searches by {effort} miss {len(set(rows) - set(found))}")
    receipt = result.receipt
    visible = sum(shard.rows_visible for shard in receipt.shards)
    if visible != len(rows) or sum(shard.rows_damaged for shard in receipt.shards) != len(
        list(damaged)
    ):
        verdict.wrong(f"{config.name}: the receipt has {visible} of {len(rows)} rows")


def _difference(found: Content, content: Content) -> str:
    missing, more = content.keys() - found.keys(), found.keys() - content.keys()
    other = [row for row in found.keys() & content.keys() if found[row] != content[row]]
    return f"{len(missing)} missing, {len(more)} more, {len(other)} other rows: {other[:3]}"


# ---- proofs that a harm is harmless --------------------------------------------------------------

WITHOUT_MEANING: Final[Mapping[str, str]] = {
    "LOCK": "only its lock counts",
    "ballast": "only its size counts",
    "store.db-shm": "SQLite makes it anew",
}
"""Kinds of files whose bytes nobody reads."""

REWRITTEN: Final[Mapping[str, str]] = {
    "log-end": "the other slot counts, or the mark is behind the store, which is whole",
    "session": "the other slot counts",
    "witness.json": "it is the same once it is written anew",
}
"""Kinds of files that a start writes again, from what it knows for certain."""


def _meaning(harm: Harm, directory: Path) -> object:
    """Return what a file of SQLite says, before a server opens it."""
    if not class_of(harm.file).startswith("store.db"):
        return None
    return _dump((directory / harm.file).parent / "store.db")


def _dump(path: Path) -> object:
    """Return all that SQLite reads of a copy of a store."""
    copy = path.parent / "looked-at"
    copy.mkdir()
    try:
        for file in path.parent.glob("store.db*"):
            shutil.copyfile(file, copy / file.name)
        with closing(sqlite3.connect(copy / "store.db")) as database:
            # Nobody reads the metadata of dead rows.
            dead = [(number,) for number in _dead_rows(database)]
            database.executemany("DELETE FROM metadata WHERE row = ?", dead)
            # SQLite reads its description of the tables in any case of letters.
            statements = [
                text.lower() if text[:6].upper() == "CREATE" else text
                for text in database.iterdump()
            ]
            return [*statements, *database.execute("PRAGMA integrity_check")]
    except (sqlite3.DatabaseError, ValueError, TypeError, OverflowError) as error:
        return error
    finally:
        shutil.rmtree(copy)


def _proof(harm: Harm, base: Path, directory: Path, before: object) -> str:
    """Return why a harm that nobody noticed concerns nothing; empty if that is not so."""
    kind, path = class_of(harm.file), base / harm.file
    if kind in WITHOUT_MEANING:
        return WITHOUT_MEANING[kind]
    if kind in REWRITTEN:
        return REWRITTEN[kind]
    if kind in ("store.db", "store.db-wal"):
        same = before == _dump(path.parent / "store.db")
        return "SQLite reads the same, and finds it sound: unused bytes" if same else ""
    if kind == "rows":
        return _proof_of_rows(harm, path)
    if path.suffix == ".json" and _same_json(path, directory / harm.file):
        return "the JSON is the same: white space"
    if kind == "filters" and harm.kind is Kind.REMOVED:
        return "derived: built again from the rows"
    if harm.kind in (Kind.YESTERDAY, Kind.EXCHANGED) and _is_same(harm, base, directory):
        return "the files are the same"
    return ""


def _same_json(path: Path, harmed: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(harmed.read_bytes()))
    except (OSError, ValueError):
        return False


def _is_same(harm: Harm, base: Path, directory: Path) -> bool:
    there = base / (harm.other or harm.file)
    after = directory / harm.file
    return filecmp.cmp(base / harm.file, there, shallow=False) or (
        after.exists() and filecmp.cmp(base / harm.file, after, shallow=False)
    )


def _proof_of_rows(harm: Harm, path: Path) -> str:
    """A row file that is not in use, bytes behind its last row, or a bit of a dead row."""
    copy = path.parent / "looked-at"
    copy.mkdir()
    for file in path.parent.glob("store.db*"):
        shutil.copyfile(file, copy / file.name)
    with closing(sqlite3.connect(copy / "store.db")) as database:
        (used,) = database.execute("SELECT value FROM properties WHERE key = 'row_file'").fetchone()
        kept = _row_numbers(database, "SELECT row_numbers FROM kept ORDER BY first_row")
        dead = _dead_rows(database)
        written = np.concatenate(
            [kept]
            + [
                np.arange(first_row, first_row + rows)
                for first_row, rows in database.execute(
                    "SELECT first_row, rows FROM commits ORDER BY sequence"
                )
            ]
        )
    shutil.rmtree(copy)
    if used != path.name:
        return "the row file is not in use"
    position = harm.place // (DIM * 4)
    if harm.kind in (Kind.FLIP, Kind.CUT) and position >= len(written):
        return "bytes behind the last row"
    if harm.kind is Kind.FLIP and written[position] in dead:
        return "the row is dead"
    return ""


def _dead_rows(database: sqlite3.Connection) -> list[int]:
    """Return the numbers of the rows that were replaced or deleted since the last compaction."""
    queries = ("SELECT replaced FROM commits", "SELECT deleted FROM commits")
    return [row for query in queries for row in _row_numbers(database, query).tolist()]


def _row_numbers(database: sqlite3.Connection, query: str) -> Int64Array:
    """Return the row numbers in the blobs that a query finds, one after the other."""
    return np.frombuffer(b"".join(blob for (blob,) in database.execute(query)), dtype="<i8")
