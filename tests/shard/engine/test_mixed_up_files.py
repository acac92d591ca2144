"""Files of a data directory that are exchanged, copied, of another day, or gone: what is said.

No collection is served under a wrong name, or with fewer rows than it had. Each case puts files in
a wrong place and then back: nothing that was done meanwhile has harmed them.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.shard.samples import config_of, corpus_of, open_files, open_shard
from vectorshard.shard.engine import collection_set
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    DataDirectoryError,
    ShardMissing,
    VectorShardError,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.register import Register, Registered
from vectorshard.shard.types import CountRequest, SearchRequest, UpsertRequest

NAMES = ("alpha", "beta", "gamma")
CORPORA = {name: corpus_of(30, seed=seed) for seed, name in enumerate(NAMES)}
YESTERDAY = 20
"""Rows of each collection that were there a day before."""

Harm = Callable[[Path, Path], None]
Said = Mapping[str, tuple[type[VectorShardError], str]]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data directory of a closed shard, yesterday and today."""
    path = tmp_path_factory.mktemp("days")
    yesterday, today = path / "yesterday", path / "today"

    async def write() -> None:
        for first, last in ((0, YESTERDAY), (YESTERDAY, None)):
            shard = open_shard(today)
            for name, corpus in CORPORA.items():
                await shard.create_collection(config_of(name))
                part = corpus.take(slice(first, last))
                request = UpsertRequest(collection=name, ids=part.ids, vectors=part.vectors)
                await shard.upsert(request)
            await shard.close()
            if last is not None:
                shutil.copytree(today, yesterday)

    asyncio.run(write())
    return yesterday, today


async def said_of(path: Path) -> dict[str, VectorShardError]:
    """Open a shard; return what it says of the collections that it does not serve."""
    shard = open_shard(path)
    said = {}
    for name, corpus in CORPORA.items():
        try:
            search = SearchRequest(collection=name, queries=corpus.vectors, k=1)
            assert (await shard.search(search)).hits.ids.tolist() == corpus.ids.tolist()
        except VectorShardError as error:
            said[name] = error
    problems = {problem.collection: problem.text for problem in await shard.problems()}
    await shard.close()
    assert problems == {name: str(error) for name, error in said.items()}
    return said


def collection(path: Path, name: str) -> Path:
    return path / "collections" / name


# ---- harms to today's directory `path`, with yesterday's ----------------------------------------


def exchange(path: Path, _: Path) -> None:
    """Exchange the directories of two collections."""
    alpha, beta, spare = (collection(path, name) for name in ("alpha", "beta", "spare"))
    for source, destination in ((alpha, spare), (beta, alpha), (spare, beta)):
        source.rename(destination)


def exchange_file(path: Path, _: Path, *, file: str) -> None:
    """Put a file of one collection into the directory of another."""
    shutil.copy(collection(path, "beta") / file, collection(path, "alpha") / file)


def take_yesterdays(path: Path, yesterday: Path, *, file: str) -> None:
    """Put a file of the day before in its place."""
    shutil.copy(collection(yesterday, "alpha") / file, collection(path, "alpha") / file)


def copy_collection(path: Path, _: Path) -> None:
    """Copy the directory of a collection, under another name."""
    shutil.copytree(collection(path, "alpha"), collection(path, "copy"))


def remove_collection(path: Path, _: Path) -> None:
    """Remove the directory of a collection."""
    shutil.rmtree(collection(path, "alpha"))


def put_file(path: Path, _: Path) -> None:
    """Put a file in the place of the directory of a collection."""
    shutil.rmtree(collection(path, "alpha"))
    collection(path, "alpha").write_text("not a directory")


def remove(path: Path, _: Path, *, file: str) -> None:
    """Remove a file of the data directory."""
    (path / file).unlink()


def flip(path: Path, _: Path, *, file: str) -> None:
    """Flip a bit of every eighth byte in a file of the data directory."""
    contents = bytearray((path / file).read_bytes())
    contents[8::8] = bytes(byte ^ 1 for byte in contents[8::8])
    (path / file).write_bytes(contents)


SHARD_FILES = ("session", "register.json", "ballast", "LOCK")
CASES: dict[str, tuple[Harm, Said]] = {
    "exchanged": (
        exchange,
        {
            "alpha": (ShardMissing, "its files are of collection 'beta'"),
            "beta": (ShardMissing, "its files are of collection 'alpha'"),
        },
    ),
    "the store of another": (
        partial(exchange_file, file="store.db"),
        {"alpha": (ShardMissing, "its files are of collection 'beta'")},
    ),
    "the rows of another": (
        partial(exchange_file, file="rows-0.f32"),
        {"alpha": (CollectionDamaged, "does not match its content hash")},
    ),
    "yesterday's store": (
        partial(take_yesterdays, file="store.db"),
        {"alpha": (CollectionDamaged, "store.db ends after transaction .*, but log-end has")},
    ),
    "yesterday's rows": (
        partial(take_yesterdays, file="rows-0.f32"),
        {"alpha": (CollectionDamaged, "does not match its content hash")},
    ),
    "yesterday's log mark": (partial(take_yesterdays, file="log-end"), {}),
    "copied": (copy_collection, {}),
    "lost": (remove_collection, {"alpha": (ShardMissing, "its directory is gone")}),
    "a file": (put_file, {"alpha": (ShardMissing, "is gone|is not a directory")}),
    **{f"no {file}": (partial(remove, file=file), {}) for file in SHARD_FILES},
    **{f"flipped {file}": (partial(flip, file=file), {}) for file in SHARD_FILES},
}


@pytest.mark.parametrize(("harm", "expected"), CASES.values(), ids=CASES)
async def test_files_in_a_wrong_place_are_named_and_serve_again_in_the_right_one(
    tmp_path: Path, days: tuple[Path, Path], harm: Harm, expected: Said
) -> None:
    yesterday, today = days
    path = tmp_path / "shard"
    shutil.copytree(today, path)
    harm(path, yesterday)
    said = await said_of(path)
    assert said.keys() == expected.keys()
    for name, (kind, text) in expected.items():
        assert isinstance(said[name], kind)
        assert re.search(text, str(said[name]))
        assert not re.search(r"\bcreate|\bdrop", str(said[name]))
    if expected:
        for name in expected:
            where = collection(path, name)
            if where.is_dir():
                shutil.rmtree(where)
            else:
                where.unlink(missing_ok=True)
            shutil.copytree(collection(today, name), where)
        assert await said_of(path) == {}


@pytest.mark.parametrize(
    "harm", [partial(remove, file="shard.json"), partial(flip, file="shard.json")]
)
async def test_without_its_identity_a_shard_does_not_start_and_changes_nothing(
    tmp_path: Path, days: tuple[Path, Path], harm: Harm
) -> None:
    path = tmp_path / "shard"
    shutil.copytree(days[1], path)
    harm(path, days[0])
    with pytest.raises(DataDirectoryError, match=r"shard\.json"):
        open_shard(path)
    shutil.copy(days[1] / "shard.json", path)
    assert await said_of(path) == {}


async def test_a_copied_collection_is_not_served_under_its_new_name(
    tmp_path: Path, days: tuple[Path, Path]
) -> None:
    path = tmp_path / "shard"
    shutil.copytree(days[1], path)
    copy_collection(path, days[0])
    shard = open_shard(path)
    with pytest.raises(CollectionNotFound):
        await shard.count(CountRequest(collection="copy"))
    assert [entry.config.name for entry in await shard.list_collections()] == [*NAMES]
    _, is_new = await shard.create_collection(replace(config_of(), name="other"))
    assert is_new
    await shard.close()


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (Registered.DROPPED, CollectionNotFound),  # its drop was interrupted
        (None, ShardMissing),  # it has rows: a copy of a dropped collection
    ],
)
async def test_files_that_are_readable_only_when_they_are_opened_are_held_against_the_register(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: Registered | None,
    refusal: type[VectorShardError],
) -> None:
    incarnation = await closed_with_alpha(tmp_path)
    register = Register(Disk(), tmp_path)
    register.store()
    if state is not None:
        register.put(incarnation, "alpha", state)
    shard = open_at_the_second_try(tmp_path, monkeypatch)
    with pytest.raises(refusal):
        await shard.count(CountRequest(collection="alpha"))
    await shard.close()
    assert open_files(tmp_path) == []


async def test_an_interrupted_create_that_is_readable_only_when_it_is_opened_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await closed_with_alpha(tmp_path, rows=0)
    Register(Disk(), tmp_path).store()
    shard = open_at_the_second_try(tmp_path, monkeypatch)
    await put_alpha(shard, rows=30)
    await shard.close()
    shard = open_shard(tmp_path)
    assert await shard.count(CountRequest(collection="alpha")) == 30
    await shard.close()


def open_at_the_second_try(path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalShard:
    """Open a shard when no file could be read at the first look, as without open files."""
    with monkeypatch.context() as patched:
        patched.setattr(collection_set, "stored_collection", lambda _: None)
        return open_shard(path)


async def closed_with_alpha(path: Path, rows: int = 30) -> str:
    """Leave a directory with one collection; return its incarnation."""
    shard = open_shard(path)
    entry, _ = await shard.create_collection(config_of("alpha"))
    if rows:
        await put_alpha(shard, rows)
    await shard.close()
    return entry.incarnation


async def put_alpha(shard: LocalShard, rows: int) -> None:
    part = CORPORA["alpha"].take(slice(rows))
    await shard.upsert(UpsertRequest(collection="alpha", ids=part.ids, vectors=part.vectors))
