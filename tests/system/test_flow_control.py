"""Flow control from end to end: who writes faster than rows become durable is held back.

Memory is measured from outside: what a process held at most, over what it held when all was quiet.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.bare_wire import int64s, matrix
from tests.system.conftest import ServerProcess, Starter, Stub, refused, wait_until
from vectorshard.client.client import Client
from vectorshard.shard.types import IndexConfig, Metric
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

NAME = "rows"
DIM = 1_024
ROWS_A_MESSAGE = 1_000
MESSAGES = 60
"""Of 4 MB each: several times what may be held of them."""

UPLOADS = 16
MESSAGES_AN_UPLOAD = 12
"""Of many at once: 800 MB in all, with windows of 250 MB."""

HELD_BACK = 12
"""Messages that are taken at most while nothing is acknowledged: the window's, and what lies in
the buffers of the network."""

WARM_UP = 8
"""Messages before the measurement: as many as may be in flight."""

NEVER = 10_000_000
"""A min_training_size that is not reached: an index would be counted, too."""

QUIET_S = 0.5
MOST_MB = 112
"""A window of 16 MiB, and what parsing, splitting and encoding it anew takes, of 240 MB."""

MOST_WITH_SHARDS_MB = 176
"""The same where the shards that commit it are in the process, of 480 MB."""

MOST_OF_MANY_MB = 768
"""A budget of 64 MiB, four times over, and what each stream has read ahead. The windows alone let
1,400 through."""

VECTORS = np.random.default_rng(1).standard_normal((ROWS_A_MESSAGE, DIM), dtype=np.float32)


@dataclass(slots=True)
class Offer:
    """Messages of an upload, as fast as they are taken."""

    numbers: Sequence[int]
    taken: int = 0
    last_taken_at: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[v1.UpsertRequest]:
        for number in self.numbers:
            self.taken += 1
            self.last_taken_at = time.monotonic()
            first = number * ROWS_A_MESSAGE
            yield v1.UpsertRequest(
                collection=NAME,
                ids=int64s(*range(first, first + ROWS_A_MESSAGE)),
                vectors=matrix(VECTORS),
                request_id=number,
            )

    def is_held_back(self) -> bool:
        """Whether nothing has been taken for a while."""
        return time.monotonic() - self.last_taken_at > QUIET_S


def begin(client: Client, stub: Stub) -> None:
    """Create the collection, and let the server reach the memory that an upload takes."""
    index = IndexConfig(min_training_size=NEVER)
    client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=index)
    assert len(list(stub.UpsertStream(iter(Offer(range(WARM_UP)))))) == WARM_UP


@dataclass(slots=True)
class Growth:
    """How much memory of its own a process has taken at most, over what it held to begin with.

    What it maps of its row files is not counted, so that the kernel is not asked for its own peak.
    """

    server: ServerProcess
    megabytes: float = 0.0
    _quiet_mb: float = 0.0

    def __post_init__(self) -> None:
        self._quiet_mb = self._now_mb()

    def _now_mb(self) -> float:
        return self.server.memory_mb("RssAnon")

    def look(self) -> None:
        """See how much it is now."""
        self.megabytes = max(self.megabytes, self._now_mb() - self._quiet_mb)


def test_a_shard_that_stops_holds_back_its_writers_through_the_router_and_nothing_piles_up(
    start_server: Starter,
) -> None:
    fleet = start_server.fleet(2)
    going, hung = fleet.shards
    offer = Offer(range(WARM_UP, WARM_UP + MESSAGES))
    acknowledged: list[int] = []
    with fleet.client() as client, fleet.stub() as stub:
        begin(client, stub)
        growths = [Growth(process) for process in (going, fleet.router)]

        def look_until(holds: Callable[[], bool]) -> None:
            def look() -> bool:
                for growth in growths:
                    growth.look()
                return holds()

            wait_until(look, 60)

        hung.signal(signal.SIGSTOP)
        answers = stub.UpsertStream(iter(offer))
        reading = threading.Thread(
            target=lambda: acknowledged.extend(answer.request_id for answer in answers)
        )
        reading.start()
        try:
            look_until(offer.is_held_back)
            assert not acknowledged
            assert offer.taken <= HELD_BACK
        finally:
            hung.signal(signal.SIGCONT)
        look_until(lambda: not reading.is_alive())
        assert acknowledged == list(offer.numbers)
        assert all(growth.megabytes < MOST_MB for growth in growths), growths
        rows = (WARM_UP + MESSAGES) * ROWS_A_MESSAGE
        assert client.count(NAME) == rows
        sample = np.arange(0, rows, 997)
        stored = client.get(NAME, sample)
        assert stored.ids.tolist() == sample.tolist()
        np.testing.assert_array_equal(stored.vectors, VECTORS[sample % ROWS_A_MESSAGE])
        client.drop_collection(NAME)  # much to keep for nobody
    fleet.stop()


def test_a_client_that_does_not_read_its_acknowledgements_does_not_fill_the_server(
    start_server: Starter,
) -> None:
    server = start_server(2)
    offer = Offer(range(WARM_UP, WARM_UP + 2 * MESSAGES))
    with server.client() as client, server.stub() as stub:
        begin(client, stub)
        growth = Growth(server)

        def is_taken() -> bool:
            growth.look()
            return offer.taken == len(offer.numbers)

        answers = stub.UpsertStream(iter(offer))
        wait_until(is_taken, 60)
        assert [answer.request_id for answer in answers] == list(offer.numbers)
        growth.look()
        assert growth.megabytes < MOST_WITH_SHARDS_MB
        assert client.count(NAME) == (WARM_UP + 2 * MESSAGES) * ROWS_A_MESSAGE
        client.drop_collection(NAME)
    server.stop()


def test_many_uploads_to_a_shard_that_has_stopped_share_one_budget(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    hung = fleet.shards[1]
    first = WARM_UP
    offers = []
    for _ in range(UPLOADS):
        offers.append(Offer(range(first, first + MESSAGES_AN_UPLOAD)))
        first += MESSAGES_AN_UPLOAD
    acknowledged: list[int] = []

    def upload(offer: Offer) -> None:
        with fleet.stub() as stub:
            acknowledged.extend(answer.request_id for answer in stub.UpsertStream(iter(offer)))

    with fleet.client() as client, fleet.stub() as stub:
        begin(client, stub)
        growth = Growth(fleet.router)

        def look_until(holds: Callable[[], bool]) -> None:
            def look() -> bool:
                growth.look()
                return holds()

            wait_until(look, 120)

        hung.signal(signal.SIGSTOP)
        uploads = [threading.Thread(target=upload, args=(offer,)) for offer in offers]
        for thread in uploads:
            thread.start()
        try:
            look_until(lambda: all(offer.taken and offer.is_held_back() for offer in offers))
            assert not acknowledged
            one_more = next(iter(Offer([first])))
            assert refused(lambda: stub.Upsert(one_more)).reason == "OVERLOADED"
        finally:
            hung.signal(signal.SIGCONT)
        look_until(lambda: not any(thread.is_alive() for thread in uploads))
        assert sorted(acknowledged) == list(range(WARM_UP, first))
        assert growth.megabytes < MOST_OF_MANY_MB
        assert client.count(NAME) == first * ROWS_A_MESSAGE
        client.drop_collection(NAME)
    fleet.stop()
