"""Every file of a collection, harmed in every way: what the shard says, and that no harm is added.

A harm is noticed, and the collection set aside with its files as they were; or the file is derived,
and all rows are served. Either way the other collection serves, and the good file heals the harm.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.shard.samples import SMALL_ENGINE, config_of, corpus_of, open_shard
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import CollectionDamaged, CollectionUnreadable, VectorShardError
from vectorshard.shard.types import (
    DeleteRequest,
    FieldType,
    FilterField,
    GetRequest,
    Include,
    TrainRequest,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

HARMED, OTHER = "harmed", "other"
CORPUS = corpus_of(90)
CLOSED_ROWS = 60
"""Of the first session, whose log is in the database; the others' is not."""
DELETED = CORPUS.ids[-3:]
LIVE = CORPUS.take(slice(0, -3))
STILL = replace(
    SMALL_ENGINE,
    buffer=replace(SMALL_ENGINE.buffer, absorb_rows=10**6),
    training=replace(SMALL_ENGINE.training, checkpoint_min_rows=10**6),
)
"""Without background work, so that a copy of the files is of one moment."""

Harm = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Templates:
    """Data directories to copy: of a shard that was closed, and of one that was killed."""

    closed: Path
    killed: Path


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Both hold LIVE in each collection, an index file, and a file of filter columns."""
    directory = tmp_path_factory.mktemp("templates")
    path, killed = directory / "closed", directory / "killed"

    async def write() -> None:
        shard = open_shard(path)
        for name in (HARMED, OTHER):
            fields = (FilterField("colour", FieldType.KEYWORD),)
            await shard.create_collection(replace(config_of(name), filter_fields=fields))
            await upsert(shard, name, slice(0, CLOSED_ROWS))
            await shard.train(TrainRequest(collection=name, wait=True))
        await shard.close()
        shard = open_shard(path, engine=STILL)
        for name in (HARMED, OTHER):
            await upsert(shard, name, slice(CLOSED_ROWS, None))
            await shard.delete(DeleteRequest(collection=name, ids=DELETED))
        shutil.copytree(path, killed)
        await shard.close()

    asyncio.run(write())
    for each in (path, killed):
        names = {file.name.split("-")[0] for file in directory_of(each).iterdir()}
        assert names >= {"store.db", "rows", "index", "filters"}
    assert (directory_of(killed) / "store.db-wal").stat().st_size
    return Templates(path, killed)


async def upsert(shard: LocalShard, name: str, rows: slice) -> None:
    part = CORPUS.take(rows)
    metadata = [metadata_from_mapping({"colour": f"red {id_}"}) for id_ in part.ids]
    await shard.upsert(
        UpsertRequest(collection=name, ids=part.ids, vectors=part.vectors, metadata=metadata)
    )


def directory_of(path: Path, name: str = HARMED) -> Path:
    return path / "collections" / name


def contents_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory, without SQLite's shared memory and an empty log."""
    return {
        file.name: file.read_bytes()
        for file in directory.iterdir()
        if file.is_file() and not file.name.endswith("-shm") and 0 < file.stat().st_size < 2**30
    }


async def check_rows(shard: LocalShard, name: str) -> None:
    """Assert that a collection has all of its rows, as they were written."""
    whole = Include(vectors=True, metadata=True)
    rows = await shard.get(GetRequest(collection=name, ids=CORPUS.ids, include=whole))
    assert rows.ids.tolist() == LIVE.ids.tolist()
    assert rows.vectors is not None
    assert rows.vectors.tobytes() == LIVE.vectors.tobytes()
    assert rows.metadata is not None
    assert all(rows.metadata)


async def said_of(path: Path, name: str) -> VectorShardError | None:
    """Open a shard; return what it says of one collection, or None if it has all its rows."""
    shard = open_shard(path, engine=STILL)
    error = None
    try:
        await check_rows(shard, OTHER)
        await check_rows(shard, name)
    except VectorShardError as raised:
        error = raised
    problems = [problem.text for problem in await shard.problems()]
    await shard.close()
    assert problems == ([] if error is None else [str(error)])
    return error


# ---- harms --------------------------------------------------------------------------------------


def flip(file: Path, *, at: float) -> None:
    """Flip a bit in a byte, at a share of the file's length, or of the rows in a row file."""
    contents = bytearray(file.read_bytes())
    length = LIVE.vectors.nbytes if file.name.startswith("rows") else len(contents)
    contents[int(at * length)] ^= 16
    file.write_bytes(contents)


def flip_in(file: Path, *, part: bytes) -> None:
    """Flip a bit in the middle of bytes that the file has, wherever they are."""
    contents, middle = file.read_bytes(), len(part) // 2
    assert part in contents
    flipped = part[:middle] + bytes([part[middle] ^ 16]) + part[middle + 1 :]
    file.write_bytes(contents.replace(part, flipped))


def flip_marks(file: Path) -> None:
    """Flip a bit in both records of the log mark."""
    contents = bytearray(file.read_bytes())
    for first in (0, 4_096):
        contents[first + 9] ^= 1
    file.write_bytes(contents)


def cut(file: Path, *, to: float) -> None:
    """Shorten the file to a share of its length, or of its rows."""
    contents = file.read_bytes()
    length = LIVE.vectors.nbytes if file.name.startswith("rows") else len(contents)
    file.write_bytes(contents[: int(to * length)])


def zero(file: Path) -> None:
    """Overwrite the file with zeros, as some file systems do after a power cut."""
    file.write_bytes(bytes(file.stat().st_size))


def remove(file: Path) -> None:
    """Remove the file."""
    file.unlink()


def put_directory(file: Path) -> None:
    """Put a directory in its place."""
    file.unlink()
    file.mkdir()


def put_pipe(file: Path) -> None:
    """Put a pipe in its place: whoever opens it waits."""
    file.unlink()
    os.mkfifo(file)


def put_link_to(target: str) -> Harm:
    """Return what puts a link to a device, or to nothing, in a file's place."""

    def put(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return put


def put_huge(file: Path) -> None:
    """Put a file in its place that is longer than memory, without using the disk."""
    file.write_bytes(b"")
    os.truncate(file, 2**42)


def put(file: Path, *, at: int, part: bytes) -> None:
    """Write bytes at an offset."""
    contents = file.read_bytes()
    file.write_bytes(contents[:at] + part + contents[at + len(part) :])


def put_that_of_other(file: Path) -> None:
    """Put the file of the other collection in its place."""
    (there,) = (file.parent.parent / OTHER).glob(file.name)
    shutil.copy(there, file)


SHORTER_LOG = r"store\.db ends after transaction \d+ \(commit \d\), but log-end has \d \(commit 3\)"
NO_MARK = "log-end, the log mark, is missing or damaged"
NOT_A_FILE = "{} is not a file; nothing is known to be lost"
BAD_HEADER = r"store\.db is not a row store: its header is damaged"
DANGLING = "{} is a link to /absent, which is absent; nothing is known to be lost"
HOT_JOURNAL = (
    bytes.fromhex("d9d505f920a163d7")
    + struct.pack(">IIIII", 1, 1, 1, 512, 4096).ljust(504, b"\0")
    + struct.pack(">I4096xI", 1, 1)
)
"""That of a transaction of another program that it did not finish."""
ONE_ID = CORPUS.ids[9:11].astype("<i8").tobytes()
DERIVED: dict[str, Harm] = {
    "middle": partial(flip, at=0.5),
    "short": partial(cut, to=0.6),
    "gone": remove,
    "directory": put_directory,
    "pipe": put_pipe,
    "endless": put_link_to("/dev/zero"),
}
NOTICED: dict[tuple[str, str], dict[str, tuple[Harm, str]]] = {
    ("closed", "store.db"): {
        "first byte": (partial(flip, at=0.0), BAD_HEADER),
        "magic": (partial(put, at=10, part=b"x"), BAD_HEADER),
        "an id": (partial(flip_in, part=ONE_ID), "commit 1, from row 0 on, is .* damaged"),
        "configuration": (partial(flip_in, part=b'"colour"'), "property configuration"),
        "short": (partial(cut, to=0.6), "store.db: database disk image is malformed"),
        "empty": (partial(cut, to=0.0), "store.db is not a row store: it has 0 bytes"),
        "a stub": (partial(cut, to=0.001), r"store.db is not a row store: it has \d\d bytes"),
        "gone": (remove, "store.db is missing"),
        "directory": (put_directory, NOT_A_FILE.format("store.db")),
    },
    ("killed", "store.db"): {
        "empty": (partial(cut, to=0.0), "store.db is not a row store: it has 0 bytes"),
        "not with a log": (partial(put, at=18, part=b"\1\1"), BAD_HEADER),
        "zeros": (zero, BAD_HEADER),
        "device": (put_link_to("/dev/null"), NOT_A_FILE.format("store.db")),
        "dangling": (put_link_to("/absent"), DANGLING.format("store.db")),
        "pipe": (put_pipe, NOT_A_FILE.format("store.db")),
    },
    ("killed", "store.db-wal"): {
        "device": (put_link_to("/dev/null"), NOT_A_FILE.format("store.db-wal")),
        "dangling": (put_link_to("/absent"), DANGLING.format("store.db-wal")),
        "middle": (partial(flip, at=0.5), SHORTER_LOG),
        "short": (partial(cut, to=0.6), SHORTER_LOG),
        "zeros": (zero, SHORTER_LOG),
        "gone": (remove, SHORTER_LOG),
        "directory": (put_directory, NOT_A_FILE.format("store.db-wal")),
    },
    ("killed", "rows-0.f32"): {
        "short": (partial(cut, to=0.6), "rows-0.f32 has .* bytes; 90 committed rows of dim 8 need"),
        "zeros": (zero, "does not match its content hash"),
        "gone": (remove, "rows-0.f32 is missing"),
        "directory": (put_directory, NOT_A_FILE.format("rows-0.f32")),
    },
    ("killed", "log-end"): {
        "both marks": (flip_marks, NO_MARK),
        "endless": (put_link_to("/dev/zero"), NOT_A_FILE.format("log-end")),
        "huge": (put_huge, NO_MARK),
        "pipe": (put_pipe, NOT_A_FILE.format("log-end")),
        "gone": (remove, NO_MARK),
        "directory": (put_directory, NOT_A_FILE.format("log-end")),
    },
}
HARMLESS: dict[tuple[str, str], dict[str, Harm]] = {
    ("killed", "log-end"): {"one mark": partial(flip, at=0.0)},
    ("closed", "index-*"): DERIVED,
    ("closed", "filters-*"): {**DERIVED, "that of another": put_that_of_other},
}


@pytest.mark.parametrize(
    ("state", "name", "harm", "said"),
    [
        pytest.param(state, name, harm, said, id=f"{state}-{name}-{what}")
        for (state, name), harms in NOTICED.items()
        for what, (harm, said) in harms.items()
    ],
)
async def test_a_harm_is_named_changes_nothing_more_and_is_healed_by_the_good_file(
    tmp_path: Path, templates: Templates, state: str, name: str, harm: Harm, said: str
) -> None:
    path = tmp_path / "shard"
    shutil.copytree(getattr(templates, state), path)
    file, good = directory_of(path) / name, tmp_path / "good"
    shutil.copy(file, good)
    harm(file)
    before = contents_of(directory_of(path))
    error = await said_of(path, HARMED)
    is_damage = "nothing is known to be lost" not in said
    assert isinstance(error, CollectionDamaged if is_damage else CollectionUnreadable)
    assert re.search(rf"collection '{HARMED}' of shard 0 is set aside: .*{said}", str(error))
    assert str(tmp_path) not in str(error)
    assert contents_of(directory_of(path)) == before
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    shutil.copy(good, file)
    assert await said_of(path, HARMED) is None


async def test_a_journal_beside_the_store_is_named_and_neither_rolled_back_nor_removed(
    tmp_path: Path, templates: Templates
) -> None:
    path = tmp_path / "shard"
    shutil.copytree(templates.killed, path)
    journal = directory_of(path) / "store.db-journal"
    journal.write_bytes(HOT_JOURNAL)
    before = contents_of(directory_of(path))
    error = await said_of(path, HARMED)
    assert isinstance(error, CollectionUnreadable)
    assert "store.db-journal is no file of a collection; nothing is known to be lost" in str(error)
    assert "Move it away" in str(error)
    assert contents_of(directory_of(path)) == before
    journal.unlink()
    assert await said_of(path, HARMED) is None


@pytest.mark.parametrize("name", ["store.db-wal", "store.db-shm", "log-end"])
async def test_what_a_link_leads_away_from_is_described_by_the_configuration(
    tmp_path: Path, templates: Templates, name: str
) -> None:
    path = tmp_path / "shard"
    shutil.copytree(templates.killed, path)
    put_link_to("/absent")(directory_of(path) / name)
    with capture_logs() as logs:
        shard = open_shard(path, engine=STILL)
    (told,) = [log for log in logs if log["event"] == "collection set aside"]
    assert not told.get("exc_info")
    assert HARMED in {entry.config.name for entry in await shard.list_collections()}
    described = await shard.describe(HARMED)
    assert f"{name} is a link to /absent" in described.shards[0].missing_reason
    await shard.close()


@pytest.mark.parametrize(
    ("state", "pattern", "harm"),
    [
        pytest.param(state, pattern, harm, id=f"{state}-{pattern}-{what}")
        for (state, pattern), harms in HARMLESS.items()
        for what, harm in harms.items()
    ],
)
async def test_what_is_derived_is_ignored_and_made_again(
    tmp_path: Path, templates: Templates, state: str, pattern: str, harm: Harm
) -> None:
    path = tmp_path / "shard"
    shutil.copytree(getattr(templates, state), path)
    (file,) = directory_of(path).glob(pattern)
    harm(file)
    assert await said_of(path, HARMED) is None
