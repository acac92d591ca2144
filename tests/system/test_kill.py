"""kill -9 at random moments of whatever a server does: nothing acknowledged is lost, ever.

The moments come from a seed, and yet differ from run to run, with the machine's mood.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.bare_wire import int64s, matrix
from tests.system.acknowledged import DIM, Acknowledged, vectors_of
from tests.system.conftest import Server, Starter, Stub, wait_until
from vectorshard.client.client import Client
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.errors import DeadlineExceeded, ShardUnavailable
from vectorshard.shard.types import IndexConfig, IndexKind, Metric, Receipt, ShardState
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

FLAT = IndexConfig(kind=IndexKind.IVF_FLAT)
"""Every list of it finds every row."""

KILLS = 6
"""A life costs two seconds of CPU. `make test-long` has more: see `test_kill_long.py`."""
KILLS_MAX = 30
"""As many are needed on a busy machine until each kind of background work was seen."""
ACTIVITY_S = (0.05, 0.6)
"""Between which bounds a server works before it is killed."""
PATIENCE_S = 5.0
"""How much longer every second life lasts at most, for background work that no life has seen."""

SMALL, GROWING = "small", "growing"
STILL = range(100)
"""Ids that are written once: searches find them at any moment."""

SMALL_IDS = range(100, 700)
MESSAGE_ROWS = 300
MESSAGES = 8
PAUSE_S = 0.005
"""Between two looks of those who only look: they leave the cores to others."""
BACK_S = 10.0
REST_S = 60.0
"""What background work takes at most, also on a machine with much other work."""


@dataclass(slots=True)
class Work:
    """Threads that ask a server for things, until it is killed under them."""

    server: Server
    killed: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def repeat(self, step: Callable[[Client, Stub], None]) -> None:
        """Repeat a step in a thread of its own. It may fail once the server is being killed."""

        def work() -> None:
            try:
                with self.server.client() as client, self.server.stub() as stub:
                    while True:
                        step(client, stub)
            except (ShardUnavailable, grpc.RpcError) as failure:
                if not self.killed.is_set():
                    self.failures.append(failure)
            except BaseException as failure:  # told by the thread that waits for this one
                self.failures.append(failure)

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def kill(self) -> None:
        """Kill the server, and wait until everybody has noticed."""
        self.killed.set()
        self.server.kill()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


@dataclass(slots=True)
class Story:
    """Two collections through many lives of a server."""

    data: Path
    small: Acknowledged = field(default_factory=Acknowledged)
    growing: Acknowledged = field(default_factory=lambda: Acknowledged(with_metadata=False))
    ids: int = len(STILL)
    """Ids of GROWING that have been written, or were meant to be."""
    seen: Sequence[CollectionDescription] = ()
    """SMALL and GROWING, a moment ago."""
    kills_during_training: int = 0
    lives_with_absorbing: int = 0
    all_retrained: bool = False
    index_files: set[tuple[str, ...]] = field(default_factory=set)

    def begin(self, client: Client) -> None:
        """Create both, with the rows that are never touched again."""
        for name, rows in ((SMALL, self.small), (GROWING, self.growing)):
            client.create_collection(name, dim=DIM, metric=Metric.L2, index=FLAT)
            rows.upsert(client, name, STILL)

    def live_once(self, server: Server, rng: np.random.Generator, patience_s: float) -> None:
        """Do everything at once for a random time, or until all work was seen, and be killed."""
        work = Work(server)
        for half in (0, 1):
            work.repeat(
                self.write_small(SMALL_IDS[half::2], np.random.default_rng(rng.integers(99)))
            )
        work.repeat(self.write_growing(np.random.default_rng(rng.integers(99))))
        self.seen = ()
        for step in (self.train, self.search, self.look):
            work.repeat(step)
        wait_until(lambda: bool(self.seen or work.failures))
        first_seen = self.seen
        time.sleep(rng.uniform(*ACTIVITY_S))
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and not (work.failures or self.sees_all(first_seen)):
            time.sleep(PAUSE_S)
        work.kill()
        self.kills_during_training += is_training(self.seen)
        self.lives_with_absorbing += has_absorbed(first_seen, self.seen)
        self.note_index_files()

    def write_small(self, ids: range, rng: np.random.Generator) -> Callable[[Client, Stub], None]:
        """Return what writes, writes again and deletes a few of `ids`."""

        def write(client: Client, _: Stub) -> None:
            some = rng.choice(ids, size=rng.integers(1, 60), replace=False).tolist()
            if rng.random() < 0.35:
                self.small.delete(client, SMALL, some)
            else:
                self.small.upsert(client, SMALL, some)

        return write

    def write_growing(self, rng: np.random.Generator) -> Callable[[Client, Stub], None]:
        """Return what streams new rows and some old ones, then deletes a few."""

        def write(client: Client, stub: Stub) -> None:
            sent: dict[int, list[int]] = {}

            def messages() -> Iterator[v1.UpsertRequest]:
                for _ in range(MESSAGES):
                    new = range(self.ids, self.ids + MESSAGE_ROWS)
                    self.ids = new.stop
                    old = np.unique(rng.integers(STILL.stop, new.stop, size=MESSAGE_ROWS // 10))
                    ids = sorted({*new, *old.tolist()})
                    stamp = self.growing.begin(ids)
                    sent[stamp] = ids
                    yield v1.UpsertRequest(
                        collection=GROWING,
                        ids=int64s(*ids),
                        vectors=matrix(vectors_of(ids, stamp)),
                        request_id=stamp,
                    )

            for answer in stub.UpsertStream(messages()):
                assert answer.accepted == len(sent[answer.request_id])
                self.growing.acknowledge(sent[answer.request_id], answer.request_id)
            some = np.unique(rng.integers(STILL.stop, self.ids, size=50)).tolist()
            self.growing.delete(client, GROWING, some)

        return write

    def train(self, client: Client, _: Stub) -> None:
        """Train an index, which nothing would do without being asked."""
        client.train(SMALL, wait=True, timeout_s=REST_S)

    def search(self, client: Client, _: Stub) -> None:
        """Find the rows that nobody touches."""
        for name in (SMALL, GROWING):
            for hits in (
                client.search(name, vectors_of(STILL, 1), 1, exact=True),
                client.search(name, vectors_of(STILL, 1), 1, nprobe=65_536),
            ):
                assert hits.ids.tolist() == list(STILL)
        time.sleep(PAUSE_S)

    def look(self, client: Client, _: Stub) -> None:
        """See what becomes of both."""
        self.seen = [client.describe(name) for name in (SMALL, GROWING)]
        self.note_index_files()
        time.sleep(PAUSE_S)

    def look_at_generations(self, client: Client) -> None:
        """Remember whether every shard has an index that replaced another."""
        self.all_retrained = are_retrained([client.describe(name) for name in (SMALL, GROWING)])

    def note_index_files(self) -> None:
        """Remember which index files are there at this moment."""
        for file in self.data.glob("shard-*/collections/*/index-*.faiss"):
            _, generation, absorbed_until = file.stem.split("-")
            shard, collection = file.parts[-4], file.parts[-2]
            self.index_files.add((collection, shard, generation, absorbed_until))

    def rest(self, client: Client) -> None:
        """Let the background work come to its end, as it does not on a busy machine."""
        client.train(SMALL, wait=True, timeout_s=REST_S)
        wait_until(lambda: is_settled(client.describe(GROWING)), REST_S)

    def check(self, client: Client) -> None:
        """Assert that both collections hold what they may hold."""
        self.small.check(client, SMALL)
        self.growing.check(client, GROWING)

    def sees_all(self, first_seen: Sequence[CollectionDescription]) -> bool:
        """Whether this life, or one before it, has seen each kind of background work."""
        absorbed = self.lives_with_absorbing or has_absorbed(first_seen, self.seen)
        return bool(absorbed and self.checkpoints() and are_retrained(self.seen))

    def saw_all_work(self, lives: int) -> bool:
        """Whether each kind of background work was under way in some of the lives."""
        return (
            self.kills_during_training > lives / 4
            and self.lives_with_absorbing > 0
            and self.checkpoints() > 0
            and self.all_retrained
        )

    def checkpoints(self) -> int:
        """Return how many index files were seen that replaced one of the same generation."""
        return len(self.index_files) - len({file[:3] for file in self.index_files})


def is_training(descriptions: Sequence[CollectionDescription]) -> bool:
    """Whether an index is being trained."""
    return any(shard.training for each in descriptions for shard in each.shards)


def is_settled(description: CollectionDescription) -> bool:
    """Whether every shard that has enough rows has its index, and none is being trained."""
    return all(
        (shard.state is ShardState.TRAINED or shard.ledger.live < FLAT.min_training_size)
        and not shard.training
        for shard in description.shards
    )


def are_retrained(descriptions: Sequence[CollectionDescription]) -> bool:
    """Whether every shard has an index that replaced another."""
    return all(
        shard.state is ShardState.TRAINED and shard.generation > 1
        for each in descriptions
        for shard in each.shards
    )


def has_absorbed(
    before: Sequence[CollectionDescription], after: Sequence[CollectionDescription]
) -> bool:
    """Whether an index that was there has grown."""
    pairs = [
        (old, new)
        for collections in zip(before, after, strict=True)
        for old, new in zip(*(collection.shards for collection in collections), strict=True)
    ]
    return any(
        old.state is ShardState.TRAINED
        and new.generation == old.generation
        and new.ledger.indexed > old.ledger.indexed
        for old, new in pairs
    )


def kill_a_server(start_server: Starter, kills: int, seed: int) -> int:
    """Kill a server at least `kills` times, and until all work was seen; return how often."""
    server = start_server(2)
    story = Story(server.data)
    rng = np.random.default_rng(seed)
    with server.client() as client:
        story.begin(client)
    lives = 0
    while lives < kills or (lives < KILLS_MAX and not story.saw_all_work(lives)):
        story.live_once(server, rng, PATIENCE_S if lives % 2 else 0.0)
        server.start()
        with server.client() as client:
            story.check(client)
            if lives % 4 == 1:
                story.rest(client)
            story.look_at_generations(client)
        lives += 1
    assert "background work failed" not in server.log_text()
    server.stop()
    assert story.saw_all_work(lives)
    return lives


def test_a_server_that_is_killed_again_and_again_loses_nothing_and_revives_nothing(
    start_server: Starter,
) -> None:
    kill_a_server(start_server, KILLS, seed=20)


# ---- a fleet -------------------------------------------------------------------------------------


NAME = "rows"
FLEET_KILLS = 2
FLEET_IDS = range(100, 900)
ABSENT_IDS = range(10_000, 10_100)


@dataclass(slots=True)
class Traffic:
    """Threads that write and read through a router while parts of its fleet come and go.

    Whatever fails must say that it is UNAVAILABLE, and where.
    """

    router: str
    rows: Acknowledged = field(default_factory=Acknowledged)
    over: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    partial: list[Receipt] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Write and read for as long as the context lasts."""
        self.over.clear()
        writes = (self.write(FLEET_IDS[::2], 1), self.write(FLEET_IDS[1::2], 2))
        steps = (*writes, self.read, self.train)
        threads = [threading.Thread(target=self._repeat, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]

    def _repeat(self, step: Callable[[Client], None]) -> None:
        try:
            with Client(self.router) as client:
                while not self.over.is_set() and not self.failures:
                    try:
                        step(client)
                    except ShardUnavailable as error:
                        self.complaints.append(str(error))
                        time.sleep(PAUSE_S)
        except BaseException as failure:  # told by the thread that waits for this one
            self.failures.append(failure)

    def write(self, ids: range, seed: int) -> Callable[[Client], None]:
        """Return what writes, writes again and deletes a few of `ids`."""
        rng = np.random.default_rng(seed)

        def write(client: Client) -> None:
            some = rng.choice(ids, size=rng.integers(1, 40), replace=False).tolist()
            if rng.random() < 0.35:
                self.rows.delete(client, NAME, some)
            else:
                self.rows.upsert(client, NAME, some)

        return write

    def train(self, client: Client) -> None:
        """Have an index trained, and in time the next."""
        client.train(NAME)
        time.sleep(PAUSE_S)

    def read(self, client: Client) -> None:
        """Find all rows that nobody touches, or hear why not; find those that are there."""
        queries = vectors_of(STILL, 1)
        lenient = client.search(NAME, queries, 1, exact=True, min_coverage=0.4)
        found = lenient.ids == np.array(STILL)
        if lenient.receipt.coverage == 1.0:
            assert found.all()
        else:
            self.partial.append(lenient.receipt)
            assert 0.3 * len(STILL) < found.sum() < 0.7 * len(STILL)
        assert client.get(NAME, STILL).ids.tolist() == list(STILL)
        strict = client.search(NAME, queries, 1, exact=True)
        assert strict.receipt.coverage == 1.0
        assert strict.ids.tolist() == list(STILL)
        assert client.count(NAME, STILL) == len(STILL)


def covers_all(client: Client) -> bool:
    """Whether a strict search is answered."""
    try:
        return client.search(NAME, vectors_of([0], 1), 1).receipt.coverage == 1.0
    except ShardUnavailable:
        return False


def kill_shards(start_server: Starter, kills: int, seed: int) -> None:
    """Kill the shards of a fleet in turn; each kill is reported, and each shard comes back."""
    fleet = start_server.fleet(2)
    traffic = Traffic(fleet.address)
    rng = np.random.default_rng(seed)
    with fleet.client() as client:
        index = IndexConfig(kind=IndexKind.IVF_FLAT, min_training_size=100)
        client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=index)
        traffic.rows.upsert(client, NAME, STILL)
        for kill in range(kills):
            number = kill % 2
            shard = fleet.shards[number]
            with traffic.going_on():
                time.sleep(rng.uniform(*ACTIVITY_S))
                traffic.complaints.clear()
                traffic.partial.clear()
                shard.kill()
                wait_until(lambda: bool(traffic.failures or traffic.partial))
                for ask in (
                    lambda: client.search(NAME, vectors_of(STILL, 1), 1),
                    lambda: client.get(NAME, STILL),
                    lambda: client.count(NAME),
                    lambda: list(client.list_rows(NAME)),
                    lambda: client.delete(NAME, ABSENT_IDS),
                    lambda: client.describe(NAME),
                ):
                    with pytest.raises(ShardUnavailable, match=shard.address):
                        ask()
                shard.start_again()
                wait_until(lambda: covers_all(client), BACK_S)
            assert traffic.complaints
            assert all(shard.address in complaint for complaint in traffic.complaints)
            for receipt in traffic.partial:
                [missing] = [part for part in receipt.shards if part.missing_reason]
                assert missing.shard == number
                assert shard.address in missing.missing_reason
                assert receipt.shards_total == 2
                assert receipt.coverage == 0.5
            traffic.rows.check(client, NAME)
        for part in client.describe(NAME).shards:
            assert part.state is ShardState.TRAINED
            assert part.generation > 1
    fleet.stop()


def test_a_shard_of_a_fleet_that_is_killed_is_missed_aloud_and_comes_back_with_every_row(
    start_server: Starter,
) -> None:
    kill_shards(start_server, FLEET_KILLS, seed=5)


def test_a_shard_that_hangs_is_missed_in_time_by_who_asks_for_less(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    with fleet.client() as client:
        client.create_collection(NAME, dim=4)
        client.upsert(NAME, np.arange(100), np.eye(4, dtype=np.float32)[np.arange(100) % 4])
        fleet.shards[1].signal(signal.SIGSTOP)
        hurried = Client(fleet.address, timeout_s=1.0)
        try:
            hits = client.search(NAME, np.eye(4), 3, min_coverage=0.4, timeout_s=2.0)
            with pytest.raises(ShardUnavailable, match=fleet.shards[1].address):
                client.search(NAME, np.eye(4), 3, timeout_s=1.0)
            # By then it may be known that there is nothing to wait for.
            missing = (DeadlineExceeded, ShardUnavailable)
            with pytest.raises(missing, match=fleet.shards[1].address):
                hurried.describe(NAME)
        finally:
            hurried.close()
            fleet.shards[1].signal(signal.SIGCONT)
        assert hits.receipt.shards_answered == 1
        assert "DeadlineExceeded" in hits.receipt.shards[1].missing_reason

        def covers_all() -> bool:
            hits = client.search(NAME, np.eye(4), 3, min_coverage=0.0)
            return hits.receipt.coverage == 1.0

        wait_until(covers_all, BACK_S)
    fleet.stop()


def kill_routers(start_server: Starter, kills: int) -> None:
    """Kill the router of a fleet `kills` times, and ask its successor and another router."""
    fleet = start_server.fleet(2)
    traffic = Traffic(fleet.address)
    with fleet.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=FLAT)
        traffic.rows.upsert(client, NAME, STILL)
        for _ in range(kills):
            with traffic.going_on():
                time.sleep(ACTIVITY_S[1])
                fleet.router.kill()
                wait_until(lambda: bool(traffic.complaints))
                fleet.router.start_again()
                wait_until(lambda: covers_all(client), BACK_S)
            traffic.rows.check(client, NAME)
        # Nor does one that comes up anywhere else know less.
        other = start_server.router([shard.address for shard in fleet.shards])
        with other.client() as client:
            traffic.rows.check(client, NAME)
        other.stop()
    fleet.stop()


def test_a_router_that_is_killed_takes_nothing_with_it(start_server: Starter) -> None:
    kill_routers(start_server, 1)
