"""Shards that move while a router serves: their names stay, their addresses do not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event
from typing import Final

import pytest

from tests.bare_wire import int64s
from tests.net.bed import Bed, connections_to
from tests.net.conftest import (
    DIM,
    LACKING,
    PORT,
    QUERIES,
    K,
    NetFleet,
    fleet_of,
    found,
    search_of,
)
from tests.system.conftest import wait_until
from vectorshard.client.client import Client
from vectorshard.shard.types import Float32Array
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = [pytest.mark.system_net, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

FOUND_S: Final = 10.0
"""Within which a shard that is healthy is found, wherever it is."""

WRONG_S: Final = 2.0
"""For how long names are wrong."""

AGES: Final = 6
"""For how many ages of a connection calls go on, of a second each."""

UPLOAD_PACE_S: Final = 0.1
"""Between two messages of the upload, so that it outlives many connections."""


def repeated_for(duration_s: float) -> Iterator[None]:
    """Repeat the body of a loop, whose searches take time, for so long."""
    until = time.monotonic() + duration_s
    while time.monotonic() < until:
        yield


def test_a_shard_that_is_killed_is_found_at_another_address(fleet: NetFleet) -> None:
    there = fleet.bed.host()
    fleet.shards[1].kill()
    with fleet.shown("A shard that moves"):
        fleet.name([fleet.hosts[0].address, ""])
        fleet.move(1, there)
        fleet.name([host.address for host in fleet.hosts])
        covered_s = fleet.covered_within(FOUND_S)
    print(f"full coverage {covered_s:.2f} s after it was healthy elsewhere")


def test_a_shard_whose_host_vanishes_is_found_at_another_address(fleet: NetFleet) -> None:
    """Nothing ends the connection: what is sent to the old address is lost without a word."""
    there = fleet.bed.host()
    with fleet.hosts[1].black_hole():
        fleet.shards[1].kill()
        fleet.move(1, there)
        fleet.name([host.address for host in fleet.hosts])
        print(f"full coverage {fleet.covered_within(FOUND_S):.2f} s after it was healthy elsewhere")


def test_a_name_that_means_another_shard_is_an_error_until_it_is_right_again(
    fleet: NetFleet,
) -> None:
    """The connection to the other shard is a good one, which nothing but the router would end."""
    first, second = (host.address for host in fleet.hosts)
    fleet.shards[1].kill()
    fleet.name([first, first])
    for _ in repeated_for(WRONG_S):
        strict, lenient = fleet.search(), fleet.search(min_coverage=0.5)
        assert strict.failed
        assert lenient.answered == {0}, lenient
    with fleet.shown("A name that means another shard"):
        fleet.move(1, fleet.hosts[1])
        fleet.name([first, second])
        covered_s = fleet.covered_within(FOUND_S)
    print(f"full coverage {covered_s:.2f} s after the name was right again")


def test_shards_that_have_taken_each_others_address_are_never_taken_for_each_other(
    fleet: NetFleet,
) -> None:
    first, second = fleet.hosts
    for shard in fleet.shards:
        shard.kill()
    fleet.move(0, second)
    fleet.move(1, first)
    for _ in repeated_for(WRONG_S):
        assert fleet.search().failed
        fleet.search(min_coverage=0.5)  # holds the answer to what the shards in it have
    fleet.name([second.address, first.address])
    print(f"full coverage {fleet.covered_within(FOUND_S):.2f} s after the names were right again")


def test_a_router_that_starts_before_a_shard_has_a_name_finds_it(fleet: NetFleet) -> None:
    addresses = [host.address for host in fleet.hosts]
    fleet.name([addresses[0], ""])
    fleet.router.kill()
    fleet.router.start()
    wait_until(lambda: "domain name not found" in fleet.search().told)  # the router is reached
    for _ in repeated_for(4.0):
        assert "domain name not found" in fleet.search().told
    fleet.name(addresses)
    print(f"full coverage {fleet.covered_within(FOUND_S):.2f} s after the name was known")


def test_no_call_fails_while_every_connection_is_replaced_each_second(
    bed: Bed, tmp_path: Path
) -> None:
    """Calls, a stream of searches, and an upload that outlives many connections."""
    with fleet_of(bed, tmp_path, ["--connection-age", "1"]) as fleet:
        until = time.monotonic() + AGES
        process = fleet.router.process
        assert process is not None
        ports: set[int] = set()
        searched = Event()

        def search_one_by_one() -> int:
            searches = 0
            with Client(fleet.router.address) as client:
                while time.monotonic() < until:
                    assert found(search_of(client)) == fleet.whole
                    ports.update(connections_to(PORT, process.pid))
                    searches += 1
            return searches

        def batches() -> Iterator[Float32Array]:
            while time.monotonic() < until:
                yield QUERIES

        def search_over_a_stream() -> int:
            searches = 0
            with Client(fleet.router.address) as client:
                for hits in client.search_stream("words", batches(), K, exact=True):
                    assert found(hits) == fleet.whole
                    searches += 1
            return searches

        def messages() -> Iterator[v1.UpsertRequest]:
            for number in count():
                rows = v1.Matrix(data=QUERIES.tobytes(), dim=DIM, dtype=v1.D_TYPE_FLOAT32)
                ids = int64s(*range(3 * number, 3 * number + 3))
                yield v1.UpsertRequest(collection="others", ids=ids, vectors=rows)
                if searched.wait(UPLOAD_PACE_S):
                    return

        def upload() -> int:
            with fleet.router.stub() as stub:
                return sum(each.accepted for each in stub.UpsertStream(messages()))

        fleet.client.create_collection("others", dim=DIM)
        searching = [*[search_one_by_one] * 3, search_over_a_stream]
        with ThreadPoolExecutor(len(searching) + 1) as threads:
            uploading = threads.submit(upload)
            try:
                *searches, streamed = (
                    future.result() for future in [threads.submit(each) for each in searching]
                )
            finally:
                searched.set()
            uploaded = uploading.result()
        print(
            f"{sum(searches)} searches by call, {streamed} by a stream, {uploaded} rows by an "
            f"upload, over {len(ports)} connections to the shards: none failed"
        )
        assert len(ports) > AGES
        assert fleet.client.count("others") == uploaded
        assert not [line for line in fleet.router.log_text().splitlines() if "error" in line]
