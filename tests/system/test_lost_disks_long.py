"""Every harm to a disk that a fleet must notice: real processes, each shard, one and two routers.

A fleet is filled once, and ended by kill -9. Each test starts a copy of its directories with a harm
done to them, under routers that remember nothing; then it harms them again under routers that run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.system.acknowledged import DIM, vectors_of
from tests.system.conftest import ServerProcess, Starter, servers, start_all, wait_until
from tests.system.test_lost_disks import vectorshard
from vectorshard.client.client import Client
from vectorshard.shard import errors
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import IndexConfig, Token

pytestmark = pytest.mark.system_long

SHARDS = range(2)
WORDS, DENSE, THIRD = NAMES = ("words", "dense", "third")
"""Collections: DENSE has a compaction of its row file in its log."""

UNTRAINED = IndexConfig(min_training_size=1_000_000)
"""Trainings cost time, and say nothing of disks."""

SMALL_ROWS, DENSE_ROWS, DENSE_DELETED, PIECE = 200, 24_000, 22_500, 4_000
LOG, ROWS = "store.db-wal", "rows-*.f32"
WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
ADVICE = re.compile(r"\b(create|drop)\b", re.IGNORECASE)
"""What no refusal may suggest while half of a collection lives."""

Rows = Mapping[str, Mapping[int, int]]
"""For each collection, the stamp of each id's newest write."""


def collection(directory: Path, name: str) -> Path:
    """Return where a shard keeps a collection."""
    return directory / "collections" / name


def part_of(rows: Mapping[int, int], shard: int) -> dict[int, int]:
    """Return the rows of a shard."""
    ids = np.array(sorted(rows), dtype=np.int64)
    owners = slots_of(ids).astype(np.int64) * len(SHARDS) // SLOTS_TOTAL
    return {id_: rows[id_] for id_ in ids[owners == shard].tolist()}


def write(client: Client, rows: Mapping[int, int], name: str) -> Token:
    """Upsert rows, and return the token of the last of them."""
    ids = list(rows)
    return client.upsert(name, ids, vectors_of(ids, list(rows.values()))).token


def accepted(client: Client) -> dict[tuple[str, int], int]:
    """Return how many rows each shard has accepted of each collection."""
    return {
        (name, part.shard): part.ledger.accepted
        for name in NAMES
        for part in client.describe(name).shards
    }


def replace_directory(directory: Path, good: Path) -> None:
    """Put a copy of a directory in the place of another."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(good, directory)


def unmount(place: Path) -> None:
    """Leave a link to a disk that is not there."""
    shutil.rmtree(place)
    place.symlink_to(place / "not-mounted")


def flip(path: Path, at: int) -> None:
    """Flip one bit."""
    contents = bytearray(path.read_bytes())
    contents[at] ^= 4
    path.write_bytes(contents)


def cut_rows(place: Path) -> None:
    """Cut most of the rows off: single rows that are damaged would not set the collection aside."""
    (path,) = place.glob(ROWS)
    os.truncate(path, 50 * 4 * DIM)


def log_bytes(log: bytes) -> int:
    """Return how many bytes of SQLite's log are valid, and not left over from an earlier round."""
    (page_bytes,) = struct.unpack(">I", log[8:12])
    end = WAL_HEADER_BYTES
    while log[end + 8 : end + 16] == log[16:24]:  # the salts
        end += FRAME_HEADER_BYTES + page_bytes
    return end


def harm_place(place: Path) -> int:
    """Return where a log is harmed: before a compaction, else in its middle."""
    end = log_bytes((place / LOG).read_bytes())
    first = WAL_HEADER_BYTES + FRAME_HEADER_BYTES + 100
    return first if place.name == DENSE else max(first, end // 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Harm:
    """What is done to the directory of a stopped shard, or to that of one collection."""

    do: Callable[[Path], object]
    name: str = ""
    """The collection; all if it is empty."""
    file: str = ""
    """The pattern of the file that is harmed; the collection's directory if it is empty."""

    @property
    def names(self) -> Sequence[str]:
        """The collections that it reaches."""
        return [self.name] if self.name else NAMES

    @property
    def error(self) -> type[errors.VectorShardError]:
        """What their calls raise."""
        return errors.CollectionDamaged if self.file else errors.ShardMissing

    def harm(self, directory: Path, older: Path) -> None:
        """Harm a shard's directory; `older` is an earlier copy of it."""
        if self.name:
            self.do(collection(directory, self.name))
        else:
            self.do(directory)
            if self is OLDER:
                shutil.copytree(older, directory)

    def heal(self, directory: Path, good: Path) -> None:
        """Put what was harmed back, and nothing else; `good` is the directory as it was."""
        if not self.name:
            replace_directory(directory, good)
            return
        place, intact = collection(directory, self.name), collection(good, self.name)
        if not self.file:
            if place.is_symlink():
                place.unlink()
            replace_directory(place, intact)
            return
        (path,) = intact.glob(self.file)
        shutil.copy(path, place / path.name)

    def evidence(self, directory: Path) -> dict[str, bytes]:
        """Return the files of a damaged collection, which nothing may change."""
        if not self.file:
            return {}
        files = collection(directory, self.name).iterdir()
        return {path.name: path.read_bytes() for path in files if not path.name.endswith("-shm")}


FLIP_LOG = partial(Harm, do=lambda place: flip(place / LOG, harm_place(place)), file=LOG)
CUT_LOG = partial(Harm, do=lambda place: os.truncate(place / LOG, harm_place(place)), file=LOG)
REMOVE_LOG = partial(Harm, do=lambda place: (place / LOG).unlink(), file=LOG)
OLDER = Harm(do=shutil.rmtree)
EMPTIED = Harm(do=shutil.rmtree)
HARMS: Mapping[str, Harm] = {
    "emptied": EMPTIED,
    "older": OLDER,
    "collection-gone": Harm(do=shutil.rmtree, name=WORDS),
    "not-mounted": Harm(do=unmount, name=WORDS),
    "log-flipped": FLIP_LOG(name=WORDS),
    "log-cut": CUT_LOG(name=WORDS),
    "log-removed": REMOVE_LOG(name=WORDS),
    "compaction-log-flipped": FLIP_LOG(name=DENSE),
    "compaction-log-cut": CUT_LOG(name=DENSE),
    "compaction-log-removed": REMOVE_LOG(name=DENSE),
    "one-of-three-damaged": Harm(do=cut_rows, name=THIRD, file=ROWS),
}
ACCEPTED = ("emptied", "older", "collection-gone", "log-removed")
"""Harms of different kinds, whose loss is accepted."""

EACH_SHARD = pytest.mark.parametrize("lost", SHARDS, ids=["shard-0", "shard-1"])
ROUTERS = pytest.mark.parametrize("routers", [1, 2], ids=["one-router", "two-routers"])


@dataclass
class Disks:
    """Two shards and routers over them, whose disks a test harms."""

    base: Path
    shards: list[ServerProcess]
    routers: list[ServerProcess]
    clients: list[Client] = field(default_factory=list)

    @classmethod
    def of(cls, starter: Starter, base: Path, routers: int) -> Disks:
        """Return a fleet, not started, on the directories below `base`."""
        shards = [
            starter.shard(shard, data=base / f"shard-{shard}", start=False) for shard in SHARDS
        ]
        return cls(base, shards, [starter.router([], start=False) for _ in range(routers)])

    def start(self) -> None:
        """Start the shards, then routers that remember nothing."""
        start_all(self.shards)
        addresses = [word for shard in self.shards for word in ("--shard", shard.address)]
        for router in self.routers:
            router.command = ["router", *addresses]
        start_all(self.routers)
        self.clients = [router.client() for router in self.routers]

    def close(self) -> None:
        """Close the clients."""
        for client in self.clients:
            client.close()

    def kill(self) -> None:
        """End all of it."""
        self.close()
        for server in (*self.routers, *self.shards):
            server.kill()

    def between(self, change: Callable[[], object], *shards: int) -> None:
        """Kill shards, change something, and start them again under the same routers."""
        for shard in shards:
            self.shards[shard].kill()
        change()
        for shard in shards:
            self.shards[shard].listen = self.shards[shard].address
        start_all([self.shards[shard] for shard in shards])

    def copy(self, target: Path) -> Path:
        """Copy the directories of running shards at one moment, as a snapshot of a disk does."""
        for shard in self.shards:
            shard.signal(signal.SIGSTOP)
        shutil.copytree(self.base, target)
        for shard in self.shards:
            shard.signal(signal.SIGCONT)
        return target

    def witnessed(self) -> None:
        """Return when each shard remembers all that the other has accepted."""
        counts = accepted(self.clients[0])

        def hold() -> bool:
            return all(
                sorted(count for (_, owner), count in counts.items() if owner == shard)
                == self._remembered_of(shard)
                for shard in SHARDS
            )

        wait_until(hold)

    def _remembered_of(self, shard: int) -> list[int]:
        path = self.shards[1 - shard].data / "witness.json"
        if not path.exists():
            return []
        statements = json.loads(path.read_text())["statements"]
        return sorted(each["accepted"] for each in statements if each["shard"] == shard)


@dataclass(frozen=True)
class Stock:
    """The directories of a fleet at a moment, and what is in them."""

    directory: Path
    rows: Rows
    accepted: Mapping[tuple[str, int], int]
    token: Token | None = None
    """Of the last write to WORDS."""
    older: Stock | None = None
    """An earlier moment of the same run of its shards."""


def filled(client: Client) -> dict[str, dict[int, int]]:
    """Create the collections with their first rows."""
    rows = {
        name: dict.fromkeys(range(DENSE_ROWS if name == DENSE else SMALL_ROWS), 1) for name in NAMES
    }
    for name, contents in rows.items():
        client.create_collection(name, dim=DIM, metric="l2", index=UNTRAINED)
        size = PIECE if name == DENSE else SMALL_ROWS // 4
        ids = list(contents)
        for first in range(0, len(ids), size):
            write(client, dict.fromkeys(ids[first : first + size], 1), name)
    return rows


def changed(client: Client, rows: Rows) -> tuple[dict[str, dict[int, int]], Token]:
    """Delete, replace and add rows of each collection; return all rows, and WORDS' last token."""
    after = {name: dict(contents) for name, contents in rows.items()}
    for name in reversed(NAMES):
        last = DENSE_DELETED if name == DENSE else 20
        for first in range(0, last, PIECE):
            client.delete(name, list(range(first, min(first + PIECE, last))))
        for id_ in range(last):
            del after[name][id_]
        added = len(rows[name])
        new = dict.fromkeys([*range(last, last + 20), *range(added, added + 40)], 2)
        token = write(client, new, name)
        after[name] |= new
    return after, token


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """A fleet that was filled and killed. Its logs have all writes since the snapshot."""
    path = tmp_path_factory.mktemp("stock")
    base = path / "disks"
    with servers(path) as starter:
        disks = Disks.of(starter, base, 1)
        disks.start()
        [client] = disks.clients
        older_rows = filled(client)
        disks.witnessed()
        disks.between(lambda: None, *SHARDS)  # a start empties the log
        until_whole(client, DENSE, older_rows[DENSE])
        counts = accepted(client)
        older = Stock(disks.copy(path / "older"), older_rows, counts)
        rows, token = changed(client, older_rows)
        replaced = [collection(base / f"shard-{each}", DENSE) / "rows-0.f32" for each in SHARDS]
        wait_until(lambda: not any(path.exists() for path in replaced), 60.0)
        extra = dict.fromkeys(range(DENSE_ROWS, DENSE_ROWS + 20), 3)
        write(client, extra, DENSE)
        rows[DENSE] |= extra
        disks.witnessed()
        counts = accepted(client)
        disks.kill()
    for shard in SHARDS:
        store = collection(base / f"shard-{shard}", DENSE) / "store.db"
        log = store.with_name("store.db-wal").read_bytes()
        assert b"rows-1.f32" in log[: log_bytes(log)]
        assert b"rows-1.f32" not in store.read_bytes()
    return Stock(base, rows, counts, token, older)


@pytest.fixture
def disks(start_server: Starter, stock: Stock, tmp_path: Path, routers: int) -> Iterator[Disks]:
    """A fleet on a copy of the stock's directories, not started."""
    base = shutil.copytree(stock.directory, tmp_path / "disks")
    disks = Disks.of(start_server, base, routers)
    yield disks
    disks.close()


def judged(refusal: errors.VectorShardError) -> errors.VectorShardError:
    """Return a refusal that suggests no harm."""
    assert not isinstance(refusal, errors.CollectionNotFound | errors.IncarnationMismatch), refusal
    assert not ADVICE.search(str(refusal)), refusal
    return refusal


def is_whole(client: Client, name: str, rows: Mapping[int, int]) -> bool:
    """Whether a collection is served again, with all of its rows; a strict answer has no less."""
    try:
        receipt = client.search(name, np.zeros(DIM, np.float32), 1).receipt
    except errors.VectorShardError as refusal:
        judged(refusal)
        return False
    assert receipt.coverage == 1.0
    assert sum(shard.rows_visible for shard in receipt.shards) == len(rows)
    ids = np.array(sorted(rows))
    vectors = vectors_of(ids, [rows[id_] for id_ in ids.tolist()])
    try:
        count, found = client.count(name), client.get(name, ids, metadata=False)
        hits = client.search(name, vectors[:200], 1, exact=True)
    except errors.ShardUnavailable as refusal:  # a shard that was started is being examined
        judged(refusal)
        return False
    assert count == len(rows)
    assert found.vectors is not None
    order = np.argsort(found.ids)
    np.testing.assert_array_equal(found.ids[order], ids)
    np.testing.assert_array_equal(found.vectors[order], vectors)
    assert hits.receipt.coverage == 1.0
    np.testing.assert_array_equal(hits.ids, ids[:200])
    return True


def until_whole(client: Client, name: str, rows: Mapping[int, int]) -> None:
    """Wait until a collection is served again."""
    wait_until(lambda: is_whole(client, name, rows))


def until_refused(client: Client, name: str, error: type[errors.VectorShardError]) -> None:
    """Wait until a router has found out."""
    wait_until(lambda: is_refused(client, name, error))


def until_problems(client: Client, expected: set[tuple[int, str]]) -> None:
    """Wait until a router lists problems of these shards and collections, and no others."""

    def told() -> set[tuple[int, str]]:
        return {(each.shard, each.collection) for each in client.server_info().problems}

    wait_until(lambda: told() == expected)


def require_whole(disks: Disks, rows: Rows) -> None:
    """Every router serves all, and has nothing to complain of."""
    for client in disks.clients:
        for name in NAMES:
            until_whole(client, name, rows[name])
        until_problems(client, set())
        for name in NAMES:
            assert all(part.ledger.adds_up for part in client.describe(name).shards)


def is_refused(client: Client, name: str, error: type[errors.VectorShardError]) -> bool:
    """Whether a router has found out; no strict search is answered before."""
    try:
        client.search(name, np.zeros(DIM, np.float32), 1)
    except errors.VectorShardError as refusal:
        return isinstance(judged(refusal), error)
    raise AssertionError("a strict search was answered")


def require_refused(client: Client, name: str, rows: Mapping[int, int], harm: Harm) -> None:
    """Every call that needs lost rows fails, and suggests no harm."""
    ids = list(rows)
    vectors = vectors_of(ids, list(rows.values()))
    for call in (
        lambda: client.search(name, vectors[:3], 5),
        lambda: client.search(name, vectors[:3], 5, exact=True, min_coverage=0.75),
        lambda: client.count(name),
        lambda: client.get(name, ids[:3]),
        lambda: client.delete(name, ids[:3]),
        lambda: client.explain(name, vectors[0], ids[0]),
        lambda: client.train(name),
        lambda: list(client.list_rows(name)),
        lambda: client.create_collection(name, dim=DIM, metric="l2", index=UNTRAINED),
    ):
        with pytest.raises(harm.error) as refused:
            call()
        judged(refused.value)
    with pytest.raises((harm.error, errors.ShardMissing)) as refused:
        client.upsert(name, ids, vectors)
    judged(refused.value)


def require_half(client: Client, name: str, shard: int, rows: Mapping[int, int]) -> None:
    """Lenient searches, reads and writes serve the rows of the shard that lives."""
    ids = list(rows)[:200]
    vectors = vectors_of(ids, [rows[id_] for id_ in ids])
    hits = client.search(name, vectors, 1, exact=True, min_coverage=0.25)
    assert hits.receipt.coverage == pytest.approx(0.5)
    assert hits.ids.tolist() == ids
    receipt = hits.receipt.shards
    assert receipt[1 - shard].rows_visible == len(rows)
    assert receipt[shard].missing_reason
    assert not ADVICE.search(receipt[shard].missing_reason)
    assert client.upsert(name, ids, vectors).accepted == len(ids)
    assert client.count(name, ids) == len(ids)
    parts = client.describe(name).shards
    assert [bool(part.missing_reason) for part in parts] == [shard == 0, shard == 1]
    assert name in {config.name for config in client.list_collections()}


def require_lost(disks: Disks, lost: int, harm: Harm, rows: Rows) -> None:
    """Every router says what is lost, and serves the rest."""
    for client in disks.clients:
        for name in harm.names:
            until_refused(client, name, harm.error)
            require_refused(client, name, part_of(rows[name], lost), harm)
            require_half(client, name, lost, part_of(rows[name], 1 - lost))
        for name in set(NAMES) - set(harm.names):
            until_whole(client, name, rows[name])
        until_problems(client, {(lost, name) for name in harm.names})


@pytest.mark.parametrize("kind", HARMS)
@EACH_SHARD
@ROUTERS
def test_a_harmed_disk_is_never_served_as_whole_and_heals(
    disks: Disks, stock: Stock, tmp_path: Path, lost: int, kind: str
) -> None:
    harm, part = HARMS[kind], f"shard-{lost}"
    directory = disks.shards[lost].data
    assert stock.older is not None
    harm.harm(directory, stock.older.directory / part)
    before = harm.evidence(directory)
    disks.start()
    require_lost(disks, lost, harm, stock.rows)
    assert before.items() <= harm.evidence(directory).items()
    disks.between(lambda: harm.heal(directory, stock.directory / part), lost)
    require_whole(disks, stock.rows)

    older = disks.copy(tmp_path / "older")
    rows = {name: dict(contents) for name, contents in stock.rows.items()}
    for name in NAMES:
        new = dict.fromkeys(range(50_000, 50_040), 4)
        write(disks.clients[0], new, name)
        rows[name] |= new
    disks.witnessed()
    good = tmp_path / "good"

    def keep_and_harm() -> None:
        shutil.copytree(directory, good)
        harm.harm(directory, older / part)

    disks.between(keep_and_harm, lost)
    require_lost(disks, lost, harm, rows)
    disks.between(lambda: harm.heal(directory, good), lost)
    require_whole(disks, rows)


@pytest.mark.parametrize("kind", ACCEPTED)
@EACH_SHARD
@ROUTERS
def test_a_loss_is_accepted_by_the_command_line(
    disks: Disks, stock: Stock, lost: int, kind: str
) -> None:
    harm, part = HARMS[kind], f"shard-{lost}"
    older, directory = stock.older, disks.shards[lost].data
    assert older is not None
    harm.harm(directory, older.directory / part)
    disks.start()
    require_lost(disks, lost, harm, stock.rows)
    half = {name: part_of(stock.rows[name], 1 - lost) for name in NAMES}
    target = disks.routers[-1].address
    done = vectorshard("accept-loss", "--target", target, "--shard-id", lost, "--yes")
    assert done.returncode == 0, done.stderr
    rows: dict[str, Mapping[int, int]] = dict(stock.rows)
    gone = {}
    for name in harm.names:
        kept = part_of(older.rows[name], lost) if harm is OLDER else {}
        rows[name] = half[name] | kept
        own = older.accepted[name, lost] if harm is OLDER else 0
        gone[name] = stock.accepted[name, lost] - own
        assert re.search(rf"\b{name}\b.* {gone[name]:,} ", done.stdout), done.stdout
    kept_files = list(directory.glob("collections/*.damaged"))
    assert len(kept_files) == bool(harm.file)
    for kept_directory in kept_files:  # a problem until an operator removes them
        until_problems(disks.clients[0], {(lost, harm.name)})
        shutil.rmtree(kept_directory)
    require_whole(disks, rows)
    client = disks.clients[0]
    for name in NAMES:
        assert client.describe(name).shards[lost].ledger.lost == gone.get(name, 0)

    again = part_of(stock.rows[WORDS], lost)
    for _ in range(3):  # as many commits as were lost, and more
        with pytest.raises(errors.WritesLost):
            client.search(WORDS, np.zeros(DIM, np.float32), 1, token=stock.token)
        for id_, stamp in list(again.items())[:4]:
            write(client, {id_: stamp}, WORDS)
    for name in harm.names:
        write(client, stock.rows[name], name)
        rows[name] = {**rows[name], **stock.rows[name]}
    require_whole(disks, rows)
    disks.kill()
    disks.start()
    require_whole(disks, rows)
    if not harm.name:
        disks.between(lambda: replace_directory(directory, stock.directory / part), lost)
        require_lost(disks, lost, EMPTIED, rows)


@ROUTERS
def test_exchanged_collections_are_lost_on_both_shards_until_they_are_back(
    disks: Disks, stock: Stock
) -> None:
    first, second = (shard.data / "collections" for shard in disks.shards)
    aside = disks.base / "aside"

    def exchange() -> None:
        first.rename(aside)
        second.rename(first)
        aside.rename(second)

    def require_none() -> None:
        for client in disks.clients:
            for name in NAMES:
                until_refused(client, name, errors.ShardMissing)
                require_refused(client, name, stock.rows[name], EMPTIED)
                with pytest.raises(errors.ShardMissing) as refused:
                    client.search(name, np.zeros(DIM, np.float32), 1, min_coverage=0.1)
                judged(refused.value)
            until_problems(client, {(shard, name) for shard in SHARDS for name in NAMES})

    exchange()
    disks.start()
    require_none()
    disks.between(exchange, *SHARDS)
    require_whole(disks, stock.rows)
    disks.between(exchange, *SHARDS)
    require_none()
    disks.between(exchange, *SHARDS)
    require_whole(disks, stock.rows)


@EACH_SHARD
@ROUTERS
def test_a_linked_collection_is_dropped_and_its_shard_starts_again(
    disks: Disks, stock: Stock, tmp_path: Path, lost: int
) -> None:
    place, target = collection(disks.shards[lost].data, THIRD), tmp_path / "larger"
    place.rename(target)
    place.symlink_to(target)
    disks.start()
    require_whole(disks, stock.rows)
    disks.clients[-1].drop_collection(THIRD)
    assert not place.is_symlink()
    assert not target.exists()
    for _ in range(2):
        for client in disks.clients:
            with pytest.raises(errors.CollectionNotFound):
                client.count(THIRD)
            for name in (WORDS, DENSE):
                until_whole(client, name, stock.rows[name])
        disks.kill()
        disks.start()
    disks.clients[0].create_collection(THIRD, dim=DIM, metric="l2", index=UNTRAINED)
    write(disks.clients[0], stock.rows[THIRD], THIRD)
    require_whole(disks, stock.rows)


@pytest.mark.parametrize("routers", [1])
def test_a_directory_is_served_at_its_first_start_after_an_older_copy_ran(
    disks: Disks, stock: Stock
) -> None:
    assert stock.older is not None
    OLDER.harm(disks.shards[1].data, stock.older.directory / "shard-1")
    disks.start()
    until_refused(disks.clients[0], WORDS, errors.ShardMissing)
    disks.between(lambda: OLDER.heal(disks.shards[1].data, stock.directory / "shard-1"), 1)
    wait_until(lambda: is_whole(disks.clients[0], WORDS, stock.rows[WORDS]), 5.0)
